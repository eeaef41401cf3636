//! The control socket: binding it, accepting, and closing it in order.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, each with one request at a time, bounded headers and
//! body, and a limit on how long headers may take. Whoever can open the socket (mode 0600) can
//! do everything the API can.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixSocket};
use tokio::sync::Semaphore;

/// Connections served at once; the next ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;

/// Longest wait for a request's headers, and for the next request of an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest headers, in bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// How long requests under way may take once the server is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest path of a unix socket, in bytes: `sockaddr_un` has 108 with the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why the control socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "{} is in use: a daemon answers there. Stop it, or choose another path for this one",
        path.display()
    )]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something other than a socket is there.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "{} is too long for a unix socket: {} bytes, at most {SOCKET_PATH_BYTES_MAX}; choose a \
         shorter path",
        path.display(), path.as_os_str().len()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// A bound control socket; removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl ApiSocket {
    /// Binds `path` with mode 0600. A socket that nobody listens on is replaced.
    ///
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io_error = |source| BindError::Io { path: path.to_owned(), source };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(BindError::TooLong { path: path.to_owned() });
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(io_error)?;
        socket.bind(path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Live { path: path.to_owned() },
            _ => io_error(source),
        })?;
        // Nobody can connect before listen(), so nobody gets in before the mode is set.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(io_error)?;
        let listener = socket.listen(CONNECTIONS_MAX as u32).map_err(io_error)?;
        let meta = std::fs::symlink_metadata(path).map_err(io_error)?;
        Ok(Self { listener, path: path.to_owned(), identity: (meta.dev(), meta.ino()) })
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves `router` until `stop` is done, then lets requests under way finish.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>) {
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = async {
                // Never closed, so never an error.
                let permit = Arc::clone(&permits).acquire_owned().await.ok();
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accepted => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    // Most likely out of descriptors; spinning would not bring any back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_header_size(HEADER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a control connection ended early");
                }
                drop(permit);
            });
        }
        if tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("control requests under way were cut off");
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the control socket stays behind");
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io_error = |source| BindError::Io { path: path.to_owned(), source };
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error)
        }
        // A full backlog (EAGAIN) is a live daemon too.
        Ok(_) => Err(BindError::Live { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::Live { path: path.to_owned() })
        }
        Err(error) => Err(io_error(error)),
    }
}
