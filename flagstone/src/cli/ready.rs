//! The `ready` line: how a script learns that a daemon serves, and where.

use std::io;
use std::os::unix::ffi::OsStrExt as _;

use crate::daemon::Ready;
use crate::output;
use crate::uri::percent_encode;

/// `ready nbd=URI [nbd-tcp=URI] api=PATH pools=N volumes=N`. Values hold no blanks: what a path
/// has of them is percent-encoded.
pub fn line(ready: &Ready<'_>) -> String {
    let mut line = String::from("ready");
    if let Some(socket) = &ready.endpoints.socket {
        line.push_str(&format!(" nbd={}", crate::uri::unix_uri("", socket)));
    }
    if let Some(address) = ready.endpoints.listen {
        line.push_str(&format!(" nbd-tcp={}", crate::uri::tcp_uri("", address)));
    }
    line.push_str(" api=");
    percent_encode(&mut line, ready.api_socket.as_os_str().as_bytes(), b"/");
    let (pools, volumes) = (ready.snapshot.pools.len(), ready.snapshot.volume_count());
    line.push_str(&format!(" pools={pools} volumes={volumes}"));
    line
}

/// The same as one JSON document, with the pools and the first volumes.
pub fn json(ready: &Ready<'_>) -> io::Result<()> {
    output::json(&serde_json::json!({
        "ready": true,
        "uris": ready.endpoints.uris(""),
        "api_socket": ready.api_socket,
        "pools": ready.snapshot.pools,
        "volumes": ready.snapshot.volumes,
        "volume_count": ready.snapshot.volume_count(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::backend::Snapshot;
    use crate::uri::NbdEndpoints;

    #[test]
    fn values_hold_no_blanks() {
        let endpoints = NbdEndpoints {
            socket: Some("/run/my dir/nbd.sock".into()),
            listen: Some("127.0.0.1:10809".parse().unwrap()),
        };
        let ready = Ready {
            endpoints: &endpoints,
            api_socket: std::path::Path::new("/run/my dir/api.sock"),
            snapshot: Snapshot::default(),
        };
        assert_eq!(
            line(&ready),
            "ready nbd=nbd+unix:///?socket=/run/my%20dir/nbd.sock nbd-tcp=nbd://127.0.0.1:10809/ \
             api=/run/my%20dir/api.sock pools=0 volumes=0"
        );
    }
}
