//! nsqlookupd misbehaves on command.

use super::*;

#[tokio::test(start_paused = true)]
async fn fault_lookupd_can_fail_in_each_way() {
    let house = House::new().await;
    let faults = || house.lookupd.faults();
    faults().answer_status(500);
    assert_eq!(house.ask("GET", "/ping").await, (500, String::new()));
    faults().answer_body("<html>");
    assert_eq!(house.ask("GET", "/topics").await, (200, "<html>".into()));
    faults().hang();
    let hanging = timeout(Duration::from_secs(600), house.get("/ping"));
    assert!(hanging.await.is_err());
    faults().down();
    assert!(house.network.connector().connect(ADDRESS).await.is_err());
    assert!(house.network.connector().connect(TCP_ADDRESS).await.is_err());
    faults().clear().unwrap();
    assert_eq!(house.get("/topics").await, r#"{"topics":[]}"#);
}

#[tokio::test(start_paused = true)]
async fn fault_answers_can_be_scripted_for_a_path_and_a_number_of_requests() {
    let house = House::new().await;
    house.lookupd.faults().path("/lookup").times(2).answer_status(503);
    assert_eq!(house.ask("GET", "/ping").await.0, 200);
    assert_eq!(house.ask("GET", "/lookup?topic=t").await.0, 503);
    assert_eq!(house.ask("GET", "/lookup?topic=t").await.0, 503);
    assert_eq!(house.ask("GET", "/lookup?topic=t").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn fault_a_slow_answer_is_a_right_one() {
    let house = House::new().await;
    house.lookupd.faults().times(1).delay(Duration::from_secs(7));
    let started = Instant::now();
    assert_eq!(house.get("/topics").await, r#"{"topics":[]}"#);
    assert_eq!(started.elapsed(), Duration::from_secs(7));
    house.get("/topics").await;
    assert_eq!(started.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn fault_an_answer_can_be_huge() {
    let house = House::new().await;
    let bytes = 1024 * 1024 * 1024;
    house.lookupd.faults().huge_answer(bytes);
    let mut io = house.network.connector().connect(ADDRESS).await.unwrap();
    io.write_all(b"GET /lookup HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    // A reader that gives up early is not the server's concern.
    let mut start = vec![0; 256 * 1024];
    io.read_exact(&mut start).await.unwrap();
    assert!(start.starts_with(b"HTTP/1.1 200") && start.ends_with(b"  "));
    drop(io);
    house.lookupd.faults().huge_answer(3 * 1024 * 1024);
    let length = house.get("/lookup").await.len();
    assert!(
        length > 3 * 1024 * 1024 && length < 3 * 1024 * 1024 + 64 * 1024,
        "{length}"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_a_lookupd_can_lose_its_memory_and_its_connections() {
    let house = House::new().await;
    let mut nsqd = house.nsqd().await;
    nsqd.command("REGISTER t c").await;
    house.lookupd.register("u", "gone:4150").unwrap();
    house.lookupd.faults().drop_registrations();
    assert_eq!(house.lookupd.topics(), []);
    // The nsqd knows nothing of it, and registers what is new.
    nsqd.command("REGISTER t d").await;
    assert_eq!(house.lookupd.state().topic("t").unwrap().channels, ["d"]);
    assert_eq!(house.lookupd.nodes().len(), 1);

    house.lookupd.faults().tcp_down();
    assert_eq!(house.lookupd.nodes(), []);
    nsqd.assert_closed().await;
    assert!(house.network.connector().connect(TCP_ADDRESS).await.is_err());
    assert_eq!(house.get("/ping").await, "OK");
    house.lookupd.faults().clear().unwrap();

    house.lookupd.faults().tcp_hang();
    let mut nsqd = house.peer().await;
    assert!(timeout(Duration::from_secs(60), nsqd.command("PING")).await.is_err());
    house.lookupd.faults().clear().unwrap();
    assert_eq!(house.peer().await.command("PING").await, "OK");
}
