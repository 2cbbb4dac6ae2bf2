//! Channels of many builds on the connections to one host: how many there are of each, and who shares.

use super::*;

/// Opens that many channels at once and keeps them.
pub(super) async fn open_many(sessions: &Sessions, count: usize) -> Vec<Channel> {
    let opens = (0..count).map(|_| {
        let sessions = sessions.clone();
        tokio::spawn(async move { sessions.open("cat", soon()).await })
    });
    let mut channels = Vec::new();
    for open in opens.collect::<Vec<_>>() {
        channels.push(open.await.unwrap().unwrap());
    }
    channels
}

/// Every channel still carries bytes.
pub(super) async fn echo_all(channels: &mut [Channel]) {
    for channel in channels {
        channel.stdin.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        channel.stdout.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
    }
}

#[tokio::test]
async fn one_connection_carries_eight_channels_and_the_ninth_brings_another() {
    let sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut channels = open_many(&sessions, 8).await;
    assert_eq!(sessions.connections(), 1);
    channels.extend(open_many(&sessions, 17).await);
    assert_eq!(sessions.connections(), 4);
    echo_all(&mut channels).await;
}

#[tokio::test]
async fn a_server_with_one_session_per_connection_gets_more_connections() {
    let sshd = Sshd::start(&["MaxSessions 1"]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut channels = open_many(&sessions, 5).await;
    assert_eq!(sessions.connections(), 5);
    echo_all(&mut channels).await;
    // A channel that is free again is found again, without yet another connection.
    for Channel { stdin, stdout, remote } in channels.drain(3..) {
        drop((stdin, stdout));
        remote.exit().await;
    }
    let mut again = open_many(&sessions, 2).await;
    echo_all(&mut again).await;
    assert!(sessions.connections() <= 5);
}

#[tokio::test]
async fn a_server_that_takes_no_session_at_all_is_an_error_not_a_loop() {
    let sshd = Sshd::start(&["MaxSessions 0"]);
    let sessions = Sessions::new(sshd.target.clone());
    let error = sessions.open("cat", soon()).await.unwrap_err();
    assert!(matches!(error, OpenError::Exec(ExecError::Refused(_))), "{error}");
}

#[tokio::test]
async fn when_all_is_full_an_open_waits_for_room_until_its_deadline() {
    let sshd = Sshd::start(&["MaxSessions 1"]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut channels = open_many(&sessions, 8).await;
    let deadline = Instant::now() + Duration::from_secs(1);
    assert!(matches!(sessions.open("cat", deadline).await, Err(OpenError::NoRoom)));
    let waiter = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.open("echo at last", soon()).await }
    });
    drop(channels.pop());
    let mut said = String::new();
    waiter.await.unwrap().unwrap().stdout.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "at last\n");
}

#[tokio::test]
async fn closing_the_set_ends_every_channel_and_is_no_loss() {
    let sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut losses = sessions.losses();
    let mut channels = open_many(&sessions, 9).await;
    sessions.close();
    for channel in &mut channels {
        assert!(channel.stdout.read_u8().await.is_err());
    }
    assert!(matches!(sessions.open("true", soon()).await, Err(OpenError::Closed)));
    let quiet = tokio::time::timeout(Duration::from_millis(100), losses.next()).await;
    assert!(quiet.is_err(), "a wanted end was told as a loss");
}

#[tokio::test]
async fn what_is_small_does_not_share_a_connection_with_what_is_large() {
    let sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut channels = open_many(&sessions, 2).await;
    assert_eq!(sessions.connections(), 1);
    sessions.warm_bulk(soon()).await.unwrap();
    sessions.warm_bulk(soon()).await.unwrap();
    assert_eq!(sessions.connections(), 2);
    let bulk = |count: usize| {
        let sessions = sessions.clone();
        async move {
            let mut channels = Vec::new();
            for _ in 0..count {
                channels.push(sessions.open_for(Load::Bulk, "cat", soon()).await.unwrap());
            }
            channels
        }
    };
    // Each has one for itself; then the most there may be, and then they share.
    let mut large = bulk(3).await;
    assert_eq!(sessions.connections(), 4);
    large.extend(bulk(4).await);
    assert_eq!(sessions.connections(), 6);
    // The first connection takes six more; those after that get one of their own.
    channels.extend(open_many(&sessions, 6).await);
    assert_eq!(sessions.connections(), 6);
    channels.extend(open_many(&sessions, 1).await);
    assert_eq!(sessions.connections(), 7);
    // A reader that stands still on a large stream stops nobody on the others.
    echo_all(&mut channels).await;
    echo_all(&mut large).await;
}
