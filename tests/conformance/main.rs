//! The table of exchanges with nsqd, run against the test broker.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../support/raw.rs"]
mod raw;
mod runner;

const TABLE: &str = include_str!("table.txt");

fn lines() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[tokio::test(start_paused = true)]
async fn the_test_broker_answers_as_nsqd() {
    let mut failures = Vec::new();
    let mut count = 0;
    for line in lines() {
        count += 1;
        if let Err(why) = runner::run(line).await {
            failures.push(format!("{line}\n    {why}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} lines fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count > 100, "only {count} lines were found");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_wrong_fails() {
    for wrong in [
        "X01 > PUB $t <<\"x\" ; < R NO",
        "X02 > PUB $t <<\"x\" ; < -",
        "X03 > PUB $t <<\"x\" ; < R OK ; < X",
        "X04 > SUB $t c ; < R OK ; > RDY 1 ; b> PUB $t <<\"x\" ; b< R OK ; < M body=y",
        "X05 > SUB $t c ; < R OK ; > RDY 1 ; b> DPUB $t 600 <<\"x\" ; b< R OK ; < M body=x after=700",
        "X06 > IDENTIFY <<\"{\\\"feature_negotiation\\\":true}\" ; < J {\"max_rdy_count\":1}",
    ] {
        assert!(runner::run(wrong).await.is_err(), "{wrong}");
    }
}
