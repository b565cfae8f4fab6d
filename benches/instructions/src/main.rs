//! The processor's instructions that a message takes, counted by valgrind and held to a budget.
//!
//! ```sh
//! cargo run --release --manifest-path benches/instructions/Cargo.toml            # all, or those with a word in their name:
//! cargo run --release --manifest-path benches/instructions/Cargo.toml consume
//! ```
//!
//! Instructions are not time: a wait for memory or for the kernel is none. But they are the same on a busy machine, so a
//! change that costs a tenth more is seen at once.

mod nsqd;
mod path;
mod protocol;
mod valgrind;

use std::env;
use std::error::Error;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What is counted.
struct Case {
    name: &'static str,
    /// Instructions per message, as counted when this was written. A tenth more is a failure.
    budget: u32,
    /// For so many messages, and for twice as many: the difference is without what happens only once.
    messages: u64,
    run: fn(messages: u64) -> Result<()>,
}

/// Bodies have 200 bytes. With Rust 1.95 on x86-64.
const CASES: &[Case] = &[
    case("decode-message", 378, 100_000, protocol::decode_messages),
    case("decode-ok", 130, 100_000, protocol::decode_answers),
    case("encode-fin", 20, 100_000, protocol::encode_fin),
    case("encode-pub", 195, 100_000, protocol::encode_pub),
    case("encode-mpub-of-100", 78, 100_000, protocol::encode_mpub),
    case("publish-1-caller", 5657, 5_000, |messages| path::publish(messages, 1)),
    case("publish-100-callers", 2358, 50_000, |messages| {
        path::publish(messages, 100)
    }),
    case("publish-many-of-100", 455, 100_000, path::publish_many),
    case("consume-1", 4896, 5_000, |messages| path::consume(messages, 1)),
    case("consume-100", 885, 50_000, |messages| path::consume(messages, 100)),
    case("consume-2500", 912, 100_000, |messages| path::consume(messages, 2500)),
];

const fn case(name: &'static str, budget: u32, messages: u64, run: fn(u64) -> Result<()>) -> Case {
    Case {
        name,
        budget,
        messages,
        run,
    }
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, name, messages] = &arguments[..]
        && first == valgrind::RUN
    {
        let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
        (case.run)(messages.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !valgrind::is_there() {
        if env::var_os("CI").is_some() {
            return Err("valgrind is not installed".into());
        }
        println!("skipped: valgrind is not installed");
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = |case: &&Case| arguments.is_empty() || arguments.iter().any(|word| case.name.contains(word));
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        return Err("no case has such a name".into());
    }
    println!("| case | instructions per message | budget |\n|---|---:|---:|");
    let mut verdicts = Vec::new();
    for case in cases {
        let counted = valgrind::count(case.name, case.messages)?;
        println!("| {} | {counted:.0} | {} |", case.name, case.budget);
        verdicts.push((case, counted, Verdict::of(counted, case.budget)));
    }
    let mut code = ExitCode::SUCCESS;
    for (case, counted, verdict) in verdicts {
        match verdict {
            Verdict::Within => {}
            Verdict::Generous => println!("{}: the budget can be lowered to {counted:.0}", case.name),
            Verdict::Exceeded => {
                code = ExitCode::FAILURE;
                complain(case, counted)?;
            }
        }
    }
    Ok(code)
}

fn complain(case: &Case, counted: f64) -> Result<()> {
    eprintln!(
        "error: {}: {counted:.0} instructions per message are more than its budget of {} and a tenth. Make it cheaper, or \
         raise the budget in benches/instructions/src/main.rs and say in the commit what it buys. Where they go: \
         callgrind_annotate {}",
        case.name,
        case.budget,
        valgrind::profile(case.name)?.display()
    );
    Ok(())
}

/// What a count is to its budget.
#[derive(Debug, PartialEq)]
enum Verdict {
    Within,
    /// More than a tenth above.
    Exceeded,
    /// More than a tenth below.
    Generous,
}

impl Verdict {
    fn of(counted: f64, budget: u32) -> Self {
        let budget = f64::from(budget);
        if counted > budget * 1.1 {
            Self::Exceeded
        } else if counted < budget * 0.9 {
            Self::Generous
        } else {
            Self::Within
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_more_than_the_budget_is_exceeded_and_a_tenth_less_is_generous() {
        assert_eq!(Verdict::of(110.0, 100), Verdict::Within);
        assert_eq!(Verdict::of(110.1, 100), Verdict::Exceeded);
        assert_eq!(Verdict::of(90.0, 100), Verdict::Within);
        assert_eq!(Verdict::of(89.9, 100), Verdict::Generous);
    }
}
