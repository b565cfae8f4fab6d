//! Runs lines on both sides at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{panic, thread};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::certificates::Certificates;
use super::table::Line;
use super::target_real::RealBrokers;
use super::{runner, target_test};

/// A failure says what was expected and what came.
pub(crate) type Outcome = Result<(), String>;

/// Lines that run against real brokers at once: most of a line's time is waiting.
const AT_ONCE: usize = 24;

/// Every line's outcome on the test broker, and on the real brokers where these are to be found.
pub(crate) fn run(lines: &[Line]) -> (Vec<Outcome>, Option<Vec<Outcome>>) {
    let certificates = Arc::new(Certificates::new());
    let brokers = RealBrokers::find_or_skip();
    thread::scope(|scope| {
        let real = brokers.map(|brokers| scope.spawn(|| real_side(lines, brokers, &certificates)));
        let test = test_side(lines, &certificates);
        let real = real.map(|real| real.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        (test, real)
    })
}

/// Each line has a runtime of its own, whose clock is paused.
fn test_side(lines: &[Line], certificates: &Arc<Certificates>) -> Vec<Outcome> {
    let outcomes = Mutex::new(vec![Ok(()); lines.len()]);
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(index) else { return };
            let run = panic::AssertUnwindSafe(|| test_line(line, certificates));
            let outcome = panic::catch_unwind(run).unwrap_or_else(|_| Err("panics, see above".to_owned()));
            outcomes.lock().unwrap_or_else(PoisonError::into_inner)[index] = outcome;
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn test_line(line: &Line, certificates: &Arc<Certificates>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let target = target_test::start(line, certificates).await?;
        runner::run(&line.steps, &target).await
    })
}

fn real_side(lines: &[Line], brokers: RealBrokers, certificates: &Arc<Certificates>) -> Vec<Outcome> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(all_at_once(lines, &Arc::new(brokers), certificates))
}

async fn all_at_once(lines: &[Line], brokers: &Arc<RealBrokers>, certificates: &Arc<Certificates>) -> Vec<Outcome> {
    let mut outcomes = vec![Err("was not run".to_owned()); lines.len()];
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (index, line) in lines.iter().enumerate() {
        let line = real_line(line.clone(), Arc::clone(brokers), Arc::clone(certificates));
        let permits = Arc::clone(&permits);
        running.spawn(async move {
            let _permit = permits.acquire_owned().await.expect("nobody closes it");
            (index, line.await)
        });
    }
    while let Some(done) = running.join_next().await {
        let (index, outcome) = done.expect("a line's panic is its outcome");
        outcomes[index] = outcome;
    }
    outcomes
}

/// A broker that does not start panics with its log.
async fn real_line(line: Line, brokers: Arc<RealBrokers>, certificates: Arc<Certificates>) -> Outcome {
    let run = tokio::spawn(async move {
        let target = brokers.start(&line, &certificates).await?;
        runner::run(&line.steps, &target).await
    });
    run.await.unwrap_or_else(|panic| Err(format!("panics: {panic}")))
}
