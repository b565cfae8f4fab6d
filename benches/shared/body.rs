//! What is published in benchmarks.

/// An event as services publish it: names that are always the same, and values that are not. A short one is only how such
/// an event begins.
pub(crate) fn event(random: &mut fastrand::Rng, length: usize) -> String {
    const EVENTS: [&str; 4] = ["order_created", "order_paid", "parcel_sent", "refund_asked"];
    let mut text = format!(
        r#"{{"id":"{:016x}","event":"{}","at":{},"user":{},"amount":{}.{:02},"note":""#,
        random.u64(..),
        EVENTS[random.usize(..EVENTS.len())],
        random.u64(1_700_000_000_000..1_800_000_000_000),
        random.u32(..10_000_000),
        random.u32(..1000),
        random.u32(..100),
    );
    const END: &str = r#""}"#;
    while text.len() + END.len() < length {
        text.push(random.alphanumeric());
    }
    text += END;
    text.truncate(length);
    text
}
