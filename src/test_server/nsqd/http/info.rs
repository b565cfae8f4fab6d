//! What nsqd says of itself.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Serialize;

use super::{Answered, Front};
use crate::test_server::VERSION;
use crate::test_server::http::{Answer, Refusal, Request, Router};
use crate::test_server::nsqd::state::State;

pub(super) async fn ping(front: Arc<Front>, _: Request) -> Answered {
    let (healthy, health) = front.shared.read(|state| (state.unhealthy.is_none(), health(state)));
    let status = match healthy {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Ok(Answer::bare(status, health))
}

pub(super) fn health(state: &State) -> String {
    state
        .unhealthy
        .map_or_else(|| "OK".to_owned(), |cause| format!("NOK - {cause}"))
}

/// The second in which it was started, since the Unix epoch.
pub(super) fn start_time(state: &State) -> i64 {
    state.wall_clock.unix_nanos(state.started).div_euclid(1_000_000_000)
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    broadcast_address: String,
    hostname: String,
    http_port: u16,
    tcp_port: u16,
    start_time: i64,
    max_heartbeat_interval: u128,
    max_output_buffer_size: usize,
    max_output_buffer_timeout: u128,
    max_deflate_level: u8,
}

pub(super) async fn info(front: Arc<Front>, _: Request) -> Answered {
    let options = &front.shared.options;
    let hostname = hostname::get().unwrap_or_default();
    Ok(Answer::json(&Info {
        version: VERSION,
        broadcast_address: front.broadcast_address(),
        hostname: hostname.to_string_lossy().into_owned(),
        http_port: front.http_port,
        tcp_port: front.tcp_port,
        start_time: front.shared.read(start_time),
        max_heartbeat_interval: options.max_heartbeat_interval.as_nanos(),
        max_output_buffer_size: options.max_output_buffer_size,
        max_output_buffer_timeout: options.max_output_buffer_timeout.as_nanos(),
        max_deflate_level: options.max_deflate_level,
    }))
}

/// Go's profiles are there, and empty.
pub(super) fn debug_routes(mut router: Router<Front>) -> Router<Front> {
    const PROFILES: [&str; 8] = [
        "/debug/pprof/",
        "/debug/pprof/block",
        "/debug/pprof/cmdline",
        "/debug/pprof/goroutine",
        "/debug/pprof/heap",
        "/debug/pprof/profile",
        "/debug/pprof/symbol",
        "/debug/pprof/threadcreate",
    ];
    for profile in PROFILES {
        router = router.get(profile, async |_, _| Ok(Answer::bare(StatusCode::OK, "")));
    }
    router
        .post("/debug/pprof/symbol", async |_, _| Ok(Answer::bare(StatusCode::OK, "")))
        .route(Method::PUT, "/debug/setblockrate", set_block_rate)
        .post("/debug/freememory", async |_, _| Err(crash()))
}

async fn set_block_rate(_: Arc<Front>, request: Request) -> Answered {
    let query = request.query().ok();
    let rate = query.as_ref().and_then(|query| query.get("rate")).unwrap_or_default();
    if rate.parse::<i64>().is_ok() {
        return Err(crash());
    }
    let text = format!("invalid block rate : strconv.Atoi: parsing {rate:?}: invalid syntax");
    Ok(Answer::bare(StatusCode::BAD_REQUEST, text))
}

/// nsqd does what it was asked for, and stumbles over having nothing to answer.
fn crash() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR")
}
