//! C1: reading, heartbeats and answers never wait for a handler.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{BoxError, Consumer, HandlerError, Message};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::scripted::{FIRST, Nsqd, SECOND, delivery, fin, req, sorted, stuck, text};
use crate::support::{Command, Peer, frames, settle};

#[tokio::test(start_paused = true)]
async fn c1_lesson_22_with_all_handlers_stuck_for_ever_each_heartbeat_is_answered_and_the_window_delivered() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(20, stuck).await;
    peer.deliver(0..20).await;
    for _ in 0..20 {
        tokio::time::sleep(30 * SECOND).await;
        peer.heartbeat().await;
        assert_eq!(peer.next().await, Some(Command::Nop));
        let stats = consumer.stats();
        assert_eq!(
            (stats.connections, stats.in_flight, stats.received),
            (1, 20, FIRST + 20)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn c1_lesson_40_redeliveries_to_stuck_handlers_stay_within_twice_the_window() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(20, stuck).await;
    // Ten minutes with a msg_timeout of one: all is taken back and sent again as far as RDY allows.
    let (mut rdy, mut next) = (20, 0);
    for _ in 0..10 {
        peer.deliver(next..next + rdy).await;
        next += rdy;
        for _ in 0..2 {
            tokio::time::sleep(30 * SECOND).await;
            peer.heartbeat().await;
        }
        for command in peer.drain().await {
            match command {
                Command::Rdy(count) => rdy = count,
                other => panic!("{other:?}"),
            }
        }
        let stats = consumer.stats();
        assert!(stats.in_flight <= 2 * 20 + 16, "{stats:?}");
        assert_eq!(stats.connections, 1);
    }
    assert_eq!(rdy, 0, "nsqd is told to stop");
}

#[tokio::test(start_paused = true)]
async fn c1_answers_of_quick_handlers_leave_while_others_are_stuck() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(100).concurrency(10);
    let (_consumer, mut peer) = nsqd
        .consume_with(builder, |message: Message| async move {
            if text(&message).parse::<u64>()? % 10 == 9 {
                std::future::pending::<()>().await;
            }
            Ok::<(), BoxError>(())
        })
        .await;
    peer.deliver(0..90).await;
    let quick: Vec<_> = (0..90).filter(|number| number % 10 != 9).map(fin).collect();
    assert_eq!(peer.commands(quick.len()).await, sorted(quick));
    // Nine of ten workers are stuck; the last one goes on.
    peer.deliver([90]).await;
    assert_eq!(peer.command().await, fin(90));
}

#[tokio::test(start_paused = true)]
async fn c1_a_worker_stuck_on_the_last_message_it_took_leaves_the_rest_to_others() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd
        .consume(1000, |message: Message| async move {
            if text(&message) == "stuck" {
                std::future::pending::<()>().await;
            }
            Ok::<(), BoxError>(())
        })
        .await;
    // Workers take more at once with each group that went well, so every size of group is met with.
    for count in 1..=150 {
        let mut all: Vec<_> = (0..count).map(|number| delivery(number, 1, "")).collect();
        let last = all.len() - 1;
        all.insert(last, delivery(999, 1, "stuck"));
        peer.send_bytes(&frames(&all)).await;
        let expected: Vec<_> = (0..count).map(fin).collect();
        assert_eq!(peer.commands(expected.len()).await, sorted(expected));
        settle().await;
    }
}

/// Blocks the thread on a message "block" until the sender is gone; fails on "fail".
fn blocking(gate: Receiver<()>) -> impl async_nsq::Handler {
    let gate = Arc::new(Mutex::new(gate));
    move |message: Message| {
        let gate = Arc::clone(&gate);
        async move {
            match text(&message) {
                "block" => {
                    let _gate_is_open = gate.lock().unwrap().recv();
                    Ok(())
                }
                "fail" => Err(BoxError::from(
                    HandlerError::requeue_after(Duration::from_millis(7)).without_backoff(),
                )),
                _ => Ok(()),
            }
        }
    }
}

/// Fails the test rather than to hang for ever.
async fn soon<F: Future>(what: F) -> F::Output {
    timeout(60 * SECOND, what).await.expect("it is held back")
}

/// Grows the groups that workers take, with messages that are handled at once.
async fn warm_up(peer: &mut Peer, rounds: u64) {
    for round in 0..rounds {
        let numbers = 10_000 + 100 * round..10_040 + 100 * round;
        peer.deliver(numbers.clone()).await;
        let expected: Vec<_> = numbers.map(fin).collect();
        assert_eq!(soon(peer.commands(expected.len())).await, sorted(expected));
    }
}

/// Sends these bodies at once and expects all answers but those of blocked handlers, and that of a heartbeat.
async fn all_but_blocked(peer: &mut Peer, bodies: &[&'static str]) {
    let numbered = || (0..).zip(bodies);
    let all: Vec<_> = numbered().map(|(number, body)| delivery(number, 1, *body)).collect();
    peer.send_bytes(&frames(&all)).await;
    let expected: Vec<_> = numbered()
        .filter_map(|(number, body)| match *body {
            "block" => None,
            "fail" => Some(req(number, 7)),
            _ => Some(fin(number)),
        })
        .collect();
    assert_eq!(soon(peer.commands(expected.len())).await, sorted(expected));
    peer.heartbeat().await;
    assert_eq!(soon(peer.next()).await, Some(Command::Nop));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_lesson_23_a_handler_that_blocks_its_thread_holds_back_nothing_but_its_message() {
    for (rounds, before, after) in [
        (0, 0, 20),
        (0, 1, 1),
        (0, 3, 50),
        (8, 0, 50),
        (8, 5, 40),
        (8, 40, 1),
        (8, 1, 0),
    ] {
        let mut nsqd = Nsqd::start();
        let (open, gate) = channel();
        let (consumer, mut peer) = nsqd.consume(100, blocking(gate)).await;
        warm_up(&mut peer, rounds).await;
        let mut bodies = vec!["quick"; before];
        bodies.push("block");
        bodies.extend(vec!["quick"; after]);
        all_but_blocked(&mut peer, &bodies).await;
        // And what comes later.
        warm_up(&mut peer, 2).await;
        drop(open);
        assert_eq!(soon(peer.command()).await, fin(before as u64));
        drop(consumer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_a_failed_message_is_requeued_while_the_next_handler_blocks_its_thread() {
    for rounds in [0, 8] {
        let mut nsqd = Nsqd::start();
        let (open, gate) = channel();
        let (_consumer, mut peer) = nsqd.consume(100, blocking(gate)).await;
        warm_up(&mut peer, rounds).await;
        all_but_blocked(&mut peer, &["quick", "fail", "block", "fail", "quick", "fail"]).await;
        drop(open);
        assert_eq!(soon(peer.command()).await, fin(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_failures_without_end_do_not_put_off_the_look_after_a_blocked_thread() {
    let mut nsqd = Nsqd::start();
    let (open, gate) = channel();
    let (_consumer, mut peer) = nsqd.consume(200, blocking(gate)).await;
    warm_up(&mut peer, 8).await;
    let mut bodies = vec!["fail"; 40];
    bodies.insert(3, "block");
    for _ in 0..20 {
        // Only one is to block at a time: the later rounds find the thread blocked already.
        all_but_blocked(&mut peer, &bodies).await;
        bodies.retain(|body| *body != "block");
    }
    drop(open);
    assert_eq!(soon(peer.command()).await, fin(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_a_blocked_thread_holds_back_no_other_connection() {
    let mut nsqds = Nsqd::start_many(2);
    let (open, gate) = channel();
    let builder = nsqds[0].consumer().nsqd("nsqd-1:4150").max_in_flight(200);
    let _consumer = builder.start(blocking(gate)).await.unwrap();
    let (mut first, mut second) = (nsqds[0].accept().await, nsqds[1].accept().await);
    // Each has its half once the other one has delivered, too.
    let reads_its_half = async |peer: &mut Peer| while soon(peer.command()).await != Command::Rdy(100) {};
    tokio::join!(reads_its_half(&mut first), reads_its_half(&mut second));
    // Alternating, so that groups hold messages of both.
    for round in 0..20 {
        for number in 0..5 {
            let number = 100 * round + number;
            first.deliver([number]).await;
            second.deliver([number]).await;
        }
    }
    first.send_bytes(&frames(&[delivery(99_999, 1, "block")])).await;
    for round in 20..40 {
        for number in 0..5 {
            let number = 100 * round + number;
            second.deliver([number]).await;
            first.deliver([number]).await;
        }
    }
    for peer in [&mut first, &mut second] {
        let mut finished = 0;
        while finished < 200 {
            finished += usize::from(matches!(soon(peer.command()).await, Command::Fin(_)));
        }
        peer.heartbeat().await;
        while soon(peer.next()).await != Some(Command::Nop) {}
    }
    drop(open);
    loop {
        match soon(first.command()).await {
            Command::Rdy(_) => {}
            command => break assert_eq!(command, fin(99_999)),
        }
    }
}

#[test]
fn c1_a_lone_message_that_blocks_the_thread_which_waits_for_sockets_holds_back_no_heartbeat() {
    let ours = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let theirs = Builder::new_current_thread().enable_all().build().unwrap();
    let listener = theirs.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // At once, and in a later poll of the handler.
    for later in [false, true] {
        let (open, gate) = channel();
        let blocks = Arc::new(blocking(gate));
        let handler = move |message: Message| {
            let blocks = Arc::clone(&blocks);
            async move {
                if later {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                async_nsq::Handler::handle(&*blocks, message).await
            }
        };
        let builder = Consumer::builder("orders", "billing").nsqd(&address);
        let consumer = ours.block_on(builder.start(handler)).unwrap();
        theirs.block_on(async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut peer = Peer::new(Box::new(stream));
            peer.handshake().await;
            peer.read_sub().await;
            peer.ok().await;
            peer.sends_the_first_message();
            assert_eq!(soon(peer.command()).await, Command::Rdy(200));
            peer.send_bytes(&frames(&[delivery(1, 1, "block")])).await;
            for number in 2..50 {
                peer.heartbeat().await;
                assert_eq!(soon(peer.next()).await, Some(Command::Nop));
                peer.deliver([number]).await;
                assert_eq!(soon(peer.command()).await, fin(number));
            }
            drop(open);
            assert_eq!(soon(peer.command()).await, fin(1));
        });
        drop(consumer);
    }
}

/// The rest of a group that takes long is given back, which wakes the driver, and the worker takes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_a_handler_that_blocks_behind_a_long_group_of_quick_ones_holds_back_no_answer() {
    for _ in 0..10 {
        let mut nsqd = Nsqd::start();
        let (open, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let builder = nsqd.consumer().max_in_flight(1000).concurrency(1);
        let handler = move |message: Message| {
            let (gate, begun) = (Arc::clone(&gate), begun.clone());
            async move {
                match text(&message) {
                    "block" => {
                        begun.send(()).unwrap();
                        // It blocks until the test lets go of the other end.
                        let _opened = gate.lock().unwrap().recv();
                    }
                    "spin" => {
                        let since = std::time::Instant::now();
                        while since.elapsed() < Duration::from_micros(9) {}
                    }
                    _ => {}
                }
                Ok::<(), BoxError>(())
            }
        };
        let (_consumer, mut peer) = nsqd.consume_with(builder, handler).await;
        warm_up(&mut peer, 20).await;
        let bodies = (0..128).map(|number| delivery(number, 1, if number < 64 { "spin" } else { "block" }));
        peer.send_bytes(&frames(&bodies.collect::<Vec<_>>())).await;
        soon(has_begun.recv()).await;
        peer.heartbeat().await;
        let mut finished = 0;
        while finished < 64 {
            finished += usize::from(matches!(soon(peer.command()).await, Command::Fin(_)));
        }
        drop(open);
    }
}

/// A second poll at once would come before what the first has woken had its turn.
#[tokio::test(start_paused = true)]
async fn c1_a_handler_that_waits_is_polled_again_only_when_it_is_woken() {
    let mut nsqd = Nsqd::start();
    let polls = Arc::new(Mutex::new(Vec::new()));
    let counted = Arc::clone(&polls);
    let handler = move |message: Message| {
        let counted = Arc::clone(&counted);
        let waits = text(&message) == "wait";
        std::future::poll_fn(move |cx| {
            let mut counted = counted.lock().unwrap();
            if waits {
                counted.push(cx.waker().clone());
            }
            if waits && counted.len() < 2 {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(Ok::<(), BoxError>(()))
            }
        })
    };
    let (_consumer, mut peer) = nsqd.consume(2, handler).await;
    peer.send_bytes(&frames(&[delivery(1, 1, "wait")])).await;
    settle().await;
    assert_eq!(polls.lock().unwrap().len(), 1);
    let waker = polls.lock().unwrap()[0].clone();
    waker.wake();
    assert_eq!(soon(peer.command()).await, fin(1));
}
