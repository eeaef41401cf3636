//! Finding the daemon: `--api-socket`, `FLAGSTONE_API`, or the usual places.

use std::future::Future;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::api::client::{Client, ClientError};
use crate::exit::Exit;

/// Where `flagstone serve` puts its control socket unless told otherwise.
pub const API_SOCKET_DEFAULT: &str = "/run/flagstone/api.sock";

/// Where `flagstone up` puts its data unless told otherwise, relative to the working directory.
pub const UP_DIR_DEFAULT: &str = "flagstone-data";

/// The control socket's name in `flagstone up`'s directory.
pub const UP_API_SOCKET: &str = "api.sock";

/// Names the daemon that a command talks to.
#[derive(Debug, clap::Args)]
pub struct ApiArgs {
    /// Control socket of the daemon
    ///
    /// Without it, and without FLAGSTONE_API, ./flagstone-data/api.sock if it exists (the daemon
    /// of `flagstone up`), else /run/flagstone/api.sock (that of `flagstone serve`).
    #[arg(long = "api-socket", alias = "api", env = "FLAGSTONE_API", value_name = "PATH")]
    api: Option<PathBuf>,
}

/// What the daemon is to be told of a pool that is named by its path, UUID or one of its devices: a path means what it means
/// here, not in the daemon's directory.
#[must_use]
pub fn pool_name(wanted: &str) -> String {
    let path = std::fs::canonicalize(wanted);
    path.map_or_else(|_| wanted.to_owned(), |path| path.display().to_string())
}

impl ApiArgs {
    fn socket(&self) -> PathBuf {
        if let Some(socket) = &self.api {
            return socket.clone();
        }
        let local = Path::new(UP_DIR_DEFAULT).join(UP_API_SOCKET);
        if local.exists() { local } else { API_SOCKET_DEFAULT.into() }
    }

    /// A client of the daemon.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// Runs `work` with a client of the daemon.
    ///
    /// # Errors
    /// What `work` says, as a failure of the command.
    pub fn call<T, F>(&self, work: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, error))?;
        Ok(runtime.block_on(work(self.client()))?)
    }
}
