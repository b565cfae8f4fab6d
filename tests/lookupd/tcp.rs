//! The TCP side, by which nsqds register.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_nsqd_registers_and_is_told_to_clients() {
    let house = House::new().await;
    let mut nsqd = house.peer().await;
    assert_eq!(nsqd.command("PING").await, "OK");
    let reply = nsqd.identify(PEER).await;
    assert!(
        reply.starts_with(r#"{"broadcast_address":"lookupd","hostname":""#),
        "{reply}"
    );
    assert!(
        reply.ends_with(r#"","http_port":4161,"tcp_port":4160,"version":"1.3.0"}"#),
        "{reply}"
    );
    assert_eq!(nsqd.command("REGISTER t c").await, "OK");
    // Whitespace around the line does not matter.
    assert_eq!(nsqd.command("  REGISTER u \r").await, "OK");
    let producer = concat!(
        r#"{"remote_address":"memory","hostname":"h","broadcast_address":"10.0.0.1","#,
        r#""tcp_port":4150,"http_port":4151,"version":"1.3.0""#
    );
    assert_eq!(
        house.get("/lookup?topic=t").await,
        format!(r#"{{"channels":["c"],"producers":[{producer}}}]}}"#)
    );
    assert_eq!(
        house.get("/nodes").await,
        format!(r#"{{"producers":[{producer},"tombstones":[false,false],"topics":["t","u"]}}]}}"#)
    );

    drop(nsqd);
    house.lookupd.wait_for(|state| state.nodes.is_empty()).await.unwrap();
    assert_eq!(
        house.get("/lookup?topic=t").await,
        r#"{"channels":["c"],"producers":[]}"#
    );
    assert_eq!(house.get("/topics").await, r#"{"topics":["t","u"]}"#);
    assert_eq!(house.get("/nodes").await, r#"{"producers":[]}"#);
}

#[tokio::test(start_paused = true)]
async fn every_refusal_by_tcp_has_its_text_and_ends_the_connection() {
    let house = House::new().await;
    let long = "a".repeat(65);
    for (identified, line, text) in [
        (false, "REGISTER t", "E_INVALID client must IDENTIFY"),
        (false, "UNREGISTER t", "E_INVALID client must IDENTIFY"),
        (false, "FOO bar", "E_INVALID invalid command FOO"),
        (false, "ping", "E_INVALID invalid command ping"),
        (false, "", "E_INVALID invalid command "),
        (true, "REGISTER", "E_INVALID REGISTER insufficient number of params"),
        (true, "UNREGISTER", "E_INVALID UNREGISTER insufficient number of params"),
        (true, "REGISTER a$", "E_BAD_TOPIC REGISTER topic name 'a$' is not valid"),
        (true, "REGISTER  c", "E_BAD_TOPIC REGISTER topic name '' is not valid"),
        (
            true,
            "REGISTER t c$",
            "E_BAD_CHANNEL REGISTER channel name 'c$' is not valid",
        ),
        (
            true,
            &format!("UNREGISTER {long}"),
            &format!("E_BAD_TOPIC UNREGISTER topic name '{long}' is not valid"),
        ),
    ] {
        let mut peer = if identified {
            house.nsqd().await
        } else {
            house.peer().await
        };
        assert_eq!(peer.command(line).await, text);
        peer.assert_closed().await;
    }
    let mut peer = house.nsqd().await;
    assert_eq!(peer.identify(PEER).await, "E_INVALID cannot IDENTIFY again");

    let mut io = house.network.connector().connect(TCP_ADDRESS).await.unwrap();
    io.write_all(b"  V2").await.unwrap();
    let mut peer = Peer { io };
    assert_eq!(peer.reply().await, "E_BAD_PROTOCOL");
    peer.assert_closed().await;
}

#[tokio::test(start_paused = true)]
async fn identify_is_read_by_the_rules_of_go() {
    let house = House::new().await;
    for (body, text) in [
        ("[]", "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        ("{", "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (r#"{"tcp_port":"1"}"#, "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (r#"{"tcp_port":1.0}"#, "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        ("null", "E_BAD_BODY IDENTIFY missing fields"),
        (
            r#"{"version":"1","tcp_port":1,"http_port":2}"#,
            "E_BAD_BODY IDENTIFY missing fields",
        ),
        (
            r#"{"broadcast_address":"a","version":"1","tcp_port":1}"#,
            "E_BAD_BODY IDENTIFY missing fields",
        ),
    ] {
        let mut peer = house.peer().await;
        assert_eq!(peer.identify(body).await, text, "{body}");
        peer.assert_closed().await;
    }
    let mut peer = house.peer().await;
    let reply = peer
        .identify(r#"{"BROADCAST_ADDRESS":"a","version":"1","tcp_port":1,"http_port":2,"zz":[]}"#)
        .await;
    assert!(reply.starts_with('{'), "{reply}");
    let node = &house.lookupd.nodes()[0];
    assert_eq!((&*node.address, &*node.hostname, node.http_port), ("a:1", "", 2));
}

#[tokio::test(start_paused = true)]
async fn n4_lengths_are_checked_before_anything_is_read() {
    let house = House::new().await;
    for size in [-1, i32::MAX, 64 * 1024 + 1] {
        let mut peer = house.peer().await;
        peer.io.write_all(b"IDENTIFY\n").await.unwrap();
        peer.io.write_i32(size).await.unwrap();
        assert_eq!(peer.reply().await, "E_BAD_BODY IDENTIFY failed to read body");
        peer.assert_closed().await;
    }
    let mut peer = house.peer().await;
    peer.io.write_all(&[b'a'; 20 * 1024]).await.unwrap();
    peer.assert_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_told_so() {
    let house = House::new().await;
    for (sent, text) in [
        (&b"IDENTIFY\n\0\0"[..], "E_BAD_BODY IDENTIFY failed to read body size"),
        (b"IDENTIFY\n\0\0\0\x05{", "E_BAD_BODY IDENTIFY failed to read body"),
    ] {
        let mut peer = house.peer().await;
        peer.io.write_all(sent).await.unwrap();
        peer.io.shutdown().await.unwrap();
        assert_eq!(peer.reply().await, text);
        peer.assert_closed().await;
    }
}
