//! How a command says that it failed: a sentence and an exit status.

use std::io::{self, Write as _};
use std::path::Path;

use crate::api::client::ClientError;
use crate::bench::BenchError;
use crate::exit::Exit;
use crate::output;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    code: String,
    message: String,
}

impl Failure {
    /// A failure with this status and sentence.
    #[must_use]
    pub fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, code: exit.code().to_owned(), message: message.to_string() }
    }

    /// A failure that has a name of its own in JSON.
    #[must_use]
    pub fn coded(exit: Exit, code: &str, message: impl ToString) -> Self {
        Self { exit, code: code.to_owned(), message: message.to_string() }
    }

    /// A directory can't be made or written to.
    #[must_use]
    pub fn directory(path: &Path, error: &io::Error) -> Self {
        let message = match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                format!("{} is not a directory; choose another path", path.display())
            }
            _ => format!("{}: {error}", path.display()),
        };
        Self::new(Exit::Failure, message)
    }

    /// The same failure, with something to do about it.
    #[must_use]
    pub fn and(mut self, advice: &str) -> Self {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    /// The exit status.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the failure to standard error.
    pub fn report(&self, json: bool) {
        let text = if json {
            let error = serde_json::json!({"code": self.code, "message": self.message});
            serde_json::json!({ "error": error }).to_string()
        } else {
            format!("error: {}", self.message)
        };
        // Whoever closed standard error doesn't want to know; the exit status is left.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// For standard output only: every other error has its own sentence.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failure, format!("standard output: {error}"))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = error.exit();
        let code = match &error {
            ClientError::Refused(refusal) => output::json_name(&refusal.code),
            _ => None,
        };
        let code = code.unwrap_or_else(|| exit.code().to_owned());
        Self { exit, code, message: error.to_string() }
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        Self::new(error.exit(), error)
    }
}
