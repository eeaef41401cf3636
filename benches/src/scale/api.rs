//! A client of the control API that does no more than is needed: HTTP/1.1, one request at a time.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::{Value, json};

use super::ScaleError;

/// Volumes or snapshots asked for at a time.
const PAGE: u32 = 1000;

/// A connection.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Self, ScaleError> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(socket)?) })
    }

    /// Makes a volume.
    pub fn create(&mut self, name: &str, size_bytes: u64) -> Result<(), ScaleError> {
        let request = json!({ "name": name, "size_bytes": size_bytes });
        self.call("POST", "/v1/volumes", &request.to_string()).map(drop)
    }

    /// Deletes a volume.
    pub fn delete(&mut self, name: &str) -> Result<(), ScaleError> {
        self.call("DELETE", &format!("/v1/volumes/{name}"), "").map(drop)
    }

    /// Takes a snapshot of a volume.
    pub fn snapshot(&mut self, volume: &str, name: &str) -> Result<(), ScaleError> {
        let request = json!({ "snapshots": [{ "volume": volume, "name": name }] });
        self.call("POST", "/v1/snapshots", &request.to_string()).map(drop)
    }

    /// Deletes a snapshot.
    pub fn delete_snapshot(&mut self, volume: &str, name: &str) -> Result<(), ScaleError> {
        self.call("DELETE", &format!("/v1/snapshots/{volume}@{name}"), "").map(drop)
    }

    /// Asks for something.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>, ScaleError> {
        self.call("GET", path, "")
    }

    /// How many volumes or snapshots their list has, page by page.
    pub fn count(&mut self, kind: &str) -> Result<u32, ScaleError> {
        let (mut count, mut after) = (0, String::new());
        loop {
            let page = self.get(&format!("/v1/{kind}?limit={PAGE}{after}"))?;
            let page: Value = serde_json::from_slice(&page)?;
            count += page[kind].as_array().map_or(0, Vec::len) as u32;
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(count),
            }
        }
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>, ScaleError> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            return Ok(answer);
        }
        let why = format!("{status}: {}", String::from_utf8_lossy(&answer));
        Err(ScaleError::Failed { what: format!("{method} {path}"), why })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}
