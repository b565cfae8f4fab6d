//! JSON from either daemon: understood or refused, never a panic.
#![no_main]

use async_nsq::protocol::{IdentifyResponse, parse_lookup, parse_nodes, parse_topics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(granted) = IdentifyResponse::decode(bytes) {
        // What is understood survives being written and read.
        let again = written_and_read(&granted);
        assert_eq!(again, granted);
    }
    if let Ok(topics) = parse_topics(bytes) {
        assert!(topics.topics.len() + topics.malformed <= bytes.len());
    }
    let nodes = parse_nodes(bytes);
    if let Ok(lookup) = parse_lookup(bytes) {
        // The same list of nsqds is in both answers.
        let nodes = nodes.expect("an answer to /lookup can be read as one to /nodes");
        assert_eq!(
            (nodes.nodes, nodes.malformed),
            (lookup.producers.clone(), lookup.malformed)
        );
        assert!(lookup.producers.len() + lookup.malformed <= bytes.len());
        for producer in &lookup.producers {
            assert!(producer.tcp_address().ends_with(&format!(":{}", producer.tcp_port)));
        }
    }
});

/// The answer as nsqd would write it, read again.
fn written_and_read(granted: &IdentifyResponse) -> IdentifyResponse {
    let json = granted.to_json();
    IdentifyResponse::decode(&json).expect("what was written can be read")
}
