//! Volumes as block devices of the kernel.

use axum::http::StatusCode;

use super::super::kernel_nbd::AttachNbd;
use super::super::ublk::AttachVolume;
use super::{Daemon, Fake, request};
use crate::exit::Exit;

#[tokio::test]
async fn block_devices_are_attached_and_detached_by_name() {
    let daemon = Daemon::start(Fake::default());
    let client = daemon.client();
    let wanted = |volume: &str| AttachVolume { volume: volume.into(), ..AttachVolume::default() };
    let (device, new) = client.attach(&wanted("a")).await.unwrap();
    assert_eq!((device.device.as_str(), device.volume.as_deref()), ("/dev/ublkb0", Some("a")));
    assert_eq!((new, device.queue_depth), (true, 128));
    assert!(!client.attach(&wanted("again")).await.unwrap().1);
    let seventh = AttachVolume { number: Some(7), queue_depth: Some(4096), ..wanted("a@s") };
    assert_eq!(client.attach(&seventh).await.unwrap().0.device, "/dev/ublkb7");
    for (body, code) in [
        ("{\"volume\": \"a b\"}", "invalid_name"),
        ("{\"volume\": \"a@\"}", "invalid_name"),
        ("{\"volume\": \"a\", \"queue_depth\": 0}", "invalid_body"),
        ("{\"volume\": \"a\", \"queue_depth\": 4097}", "invalid_body"),
        ("{\"volume\": \"a\", \"number\": -1}", "invalid_body"),
        ("{\"volume\": \"a\", \"number\": 4294967295}", "invalid_body"),
        ("{\"number\": 1}", "invalid_body"),
    ] {
        let (_, _, answer) = daemon.raw(request("POST", "/v1/ublk", body)).await;
        assert!(answer.contains(code), "{body}: {answer}");
    }
    client.detach("a", false).await.unwrap();
    client.detach("busy", true).await.unwrap();
    assert_eq!(client.detach("busy", false).await.unwrap_err().exit(), Exit::Refused);
    assert_eq!(client.detach("away", true).await.unwrap_err().exit(), Exit::NotFound);
    let (status, _, answer) = daemon.raw(request("GET", "/v1/ublk", "")).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(answer.contains("ublk_unavailable"), "{answer}");
}

#[tokio::test]
async fn devices_of_the_nbd_client_are_attached_and_detached_by_name() {
    let daemon = Daemon::start(Fake::default());
    let client = daemon.client();
    let wanted = |volume: &str| AttachNbd { volume: volume.into(), number: None };
    let (device, new) = client.attach_nbd(&wanted("a")).await.unwrap();
    let told = (device.device.as_str(), device.volume.as_deref(), new);
    assert_eq!(told, ("/dev/nbd0", Some("a"), true));
    assert!(!client.attach_nbd(&wanted("again")).await.unwrap().1);
    let last = AttachNbd { number: Some(32_767), ..wanted("a@s") };
    assert_eq!(client.attach_nbd(&last).await.unwrap().0.device, "/dev/nbd32767");
    for (body, code) in [
        ("{\"volume\": \"a b\"}", "invalid_name"),
        ("{\"volume\": \"a\", \"number\": 32768}", "invalid_body"),
        ("{\"volume\": \"a\", \"queue_depth\": 8}", "invalid_body"),
    ] {
        let (_, _, answer) = daemon.raw(request("POST", "/v1/nbd", body)).await;
        assert!(answer.contains(code), "{body}: {answer}");
    }
    client.detach_nbd("a", false).await.unwrap();
    assert_eq!(client.detach_nbd("busy", false).await.unwrap_err().exit(), Exit::Refused);
    assert_eq!(client.detach_nbd("away", true).await.unwrap_err().exit(), Exit::NotFound);
    let (status, _, answer) = daemon.raw(request("GET", "/v1/nbd", "")).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(answer.contains("nbd_unavailable"), "{answer}");
}
