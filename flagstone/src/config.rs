//! The configuration file of `flagstone serve`: TOML with the names of the flags.
//!
//! A key that is not known is refused with the nearest one that is: a typing mistake must not
//! silently leave a daemon with a default. What a flag also says, the flag decides.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::types::OnFull;
use toml::de::{DeTable, DeValue};

use crate::logging::{LogFormat, check_filter};
use crate::node::{DeviceDiscard, NvmePolling};
use crate::size::{SizeError, parse_size};

/// Largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 14] = [
    "pool",
    "nbd-socket",
    "nbd-listen",
    "api-socket",
    "memory",
    "map-memory",
    "max-connections",
    "on-full",
    "full-wait",
    "device-discard",
    "nvme-polling",
    "degraded-read-only",
    "log-level",
    "log-format",
];

/// What a configuration file says; `None` (or no pools) where it is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileConfig {
    /// `pool`: one path or a list.
    pub pools: Vec<PathBuf>,
    /// `nbd-socket`: path.
    pub nbd_socket: Option<PathBuf>,
    /// `nbd-listen`: address and port.
    pub nbd_listen: Option<SocketAddr>,
    /// `api-socket`: path.
    pub api_socket: Option<PathBuf>,
    /// `memory`: bytes.
    pub memory: Option<u64>,
    /// `map-memory`: bytes.
    pub map_memory: Option<u64>,
    /// `max-connections`.
    pub max_connections: Option<u32>,
    /// `on-full`: `wait` or `error`.
    pub on_full: Option<OnFull>,
    /// `full-wait`: seconds.
    pub full_wait: Option<Duration>,
    /// `device-discard`: `auto`, `on` or `off`.
    pub device_discard: Option<DeviceDiscard>,
    /// `nvme-polling`: `auto`, `always` or `never`.
    pub nvme_polling: Option<NvmePolling>,
    /// `degraded-read-only`.
    pub degraded_read_only: Option<bool>,
    /// `log-level`.
    pub log_level: Option<String>,
    /// `log-format`.
    pub log_format: Option<LogFormat>,
}

/// Why a configuration file was refused. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// It is absurdly large.
    #[error("{}: more than {FILE_BYTES_MAX} bytes, which is not a configuration file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        source: toml::de::Error,
    },
    /// A key that means nothing here.
    #[error("{}:{line}: unknown key \"{key}\"; {}", path.display(), suggest(*nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// As given.
        key: String,
        /// The most similar known key, if one is similar.
        nearest: Option<&'static str>,
    },
    /// A value that its key can't have.
    #[error("{}:{line}: {key}: {problem}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// The key.
        key: &'static str,
        /// What is wrong and what is expected.
        problem: String,
    },
}

fn suggest(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(key) => format!("did you mean \"{key}\"?"),
        None => format!("the keys are {}", KEYS.join(", ")),
    }
}

impl FileConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] with the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read_error)?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read_error)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        Self::parse(path, &text)
    }

    /// Parses `text`; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`] with the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        let mut config = Self::default();
        for (key, value) in table.get_ref() {
            let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
            let name = key.get_ref();
            let Some(known) = KEYS.iter().find(|known| **known == name.as_ref()) else {
                return Err(ConfigError::UnknownKey {
                    path: path.to_owned(),
                    line: line_of(key.span().start),
                    key: name.clone().into_owned(),
                    nearest: nearest(name, &KEYS),
                });
            };
            config.set(known, value.get_ref()).map_err(|problem| ConfigError::BadValue {
                path: path.to_owned(),
                line: line_of(value.span().start),
                key: known,
                problem,
            })?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        match key {
            "pool" => self.pools = paths(value)?,
            "nbd-socket" => self.nbd_socket = Some(path_value(value)?),
            "nbd-listen" => self.nbd_listen = Some(address(value)?),
            "api-socket" => self.api_socket = Some(path_value(value)?),
            "memory" => self.memory = Some(size(value)?),
            "map-memory" => self.map_memory = Some(size(value)?),
            "max-connections" => self.max_connections = Some(count(value)?),
            "on-full" => {
                self.on_full = Some(match string(value)? {
                    "wait" => OnFull::Wait,
                    "error" => OnFull::Error,
                    other => return Err(format!("\"{other}\" is neither \"wait\" nor \"error\"")),
                });
            }
            "full-wait" => {
                let DeValue::Integer(number) = value else {
                    return Err(format!("expected a whole number, found {}", value.type_str()));
                };
                self.full_wait = Some(parse_seconds(number.as_str())?);
            }
            "device-discard" => {
                self.device_discard = Some(match string(value)? {
                    "auto" => DeviceDiscard::Auto,
                    "on" => DeviceDiscard::On,
                    "off" => DeviceDiscard::Off,
                    other => {
                        return Err(format!("\"{other}\" is none of \"auto\", \"on\", \"off\""));
                    }
                });
            }
            "nvme-polling" => {
                self.nvme_polling = Some(match string(value)? {
                    "auto" => NvmePolling::Auto,
                    "always" => NvmePolling::Always,
                    "never" => NvmePolling::Never,
                    other => {
                        return Err(format!(
                            "\"{other}\" is none of \"auto\", \"always\", \"never\""
                        ));
                    }
                });
            }
            "degraded-read-only" => {
                let DeValue::Boolean(set) = value else {
                    return Err(format!("expected true or false, found {}", value.type_str()));
                };
                self.degraded_read_only = Some(*set);
            }
            "log-level" => {
                let filter = string(value)?;
                check_filter(filter).map_err(|error| error.to_string())?;
                self.log_level = Some(filter.to_owned());
            }
            "log-format" => {
                self.log_format = Some(match string(value)? {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    other => return Err(format!("\"{other}\" is neither \"text\" nor \"json\"")),
                });
            }
            _ => unreachable!("KEYS and set() name the same keys"),
        }
        Ok(())
    }
}

/// The known word most like `word`, if one is like it at all.
#[must_use]
pub fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let plain = word.to_ascii_lowercase().replace('_', "-");
    let scored = known.iter().map(|&known| (strsim::jaro_winkler(&plain, known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.7).then_some(best.1)
}

fn string<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("expected a string, found {}", other.type_str())),
    }
}

fn path_value(value: &DeValue<'_>) -> Result<PathBuf, String> {
    match string(value)? {
        "" => Err("the path is empty".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

fn paths(value: &DeValue<'_>) -> Result<Vec<PathBuf>, String> {
    match value {
        DeValue::Array(items) => items.iter().map(|item| path_value(item.get_ref())).collect(),
        other => Ok(vec![path_value(other)?]),
    }
}

fn address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    parse_address(string(value)?)
}

/// Parses `ADDRESS:PORT`, or an address alone with NBD's registered port, 10809. The address may be a name, of which
/// the first IPv4 address counts if it has one, or absent, which is every IPv4 address of the machine.
///
/// # Errors
/// A sentence with the accepted forms.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    const NBD_PORT: u16 = 10809;
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse() {
        return Ok(SocketAddr::new(ip, NBD_PORT));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (text, Some(NBD_PORT)),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let found = match port {
        Some(port) if host.is_empty() && !text.is_empty() => {
            return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        }
        Some(port) if !host.is_empty() && host.chars().all(is_name) => {
            (host, port).to_socket_addrs().map(Vec::from_iter).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first()).copied();
    first.ok_or_else(|| {
        format!(
            "\"{text}\" is not an address, nor a name that has one; write for example 127.0.0.1:10809, \
             [::1]:10809, localhost:10809, :10809 or 0.0.0.0 (the port is then 10809)"
        )
    })
}

/// Parses a number of seconds, up to a day.
///
/// # Errors
/// A sentence with what is expected.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    const MOST: u64 = 24 * 60 * 60;
    let parsed = text.parse().ok().filter(|&seconds: &u64| seconds <= MOST);
    parsed.map(Duration::from_secs).ok_or_else(|| format!("expected 0 to {MOST} seconds"))
}

fn size(value: &DeValue<'_>) -> Result<u64, String> {
    let parsed = match value {
        DeValue::Integer(number) => parse_size(number.as_str()),
        other => parse_size(string(other)?),
    };
    parsed.map_err(|error: SizeError| error.to_string())
}

fn count(value: &DeValue<'_>) -> Result<u32, String> {
    let DeValue::Integer(number) = value else {
        return Err(format!("expected a whole number, found {}", value.type_str()));
    };
    let parsed = u32::from_str_radix(number.as_str(), number.radix());
    parsed.ok().filter(|&n| n > 0).ok_or_else(|| format!("expected 1 to {}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FileConfig, String> {
        FileConfig::parse(Path::new("f.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_every_key() {
        let config = parse(
            "pool = [\"/dev/sdb\", \"pool.flagstone\"]\n\
             nbd-socket = '/run/n.sock'\n\
             nbd-listen = \"127.0.0.1\"\n\
             api-socket = \"/run/a.sock\"\n\
             memory = \"512MiB\"\n\
             map-memory = \"2G\"\n\
             max-connections = 64\n\
             on-full = \"error\"\n\
             full-wait = 5\n\
             device-discard = \"off\"\n\
             nvme-polling = \"always\"\n\
             degraded-read-only = true\n\
             log-level = \"warn\"\n\
             log-format = \"json\"\n",
        )
        .unwrap();
        let expected = FileConfig {
            pools: vec!["/dev/sdb".into(), "pool.flagstone".into()],
            nbd_socket: Some("/run/n.sock".into()),
            nbd_listen: Some("127.0.0.1:10809".parse().unwrap()),
            api_socket: Some("/run/a.sock".into()),
            memory: Some(512 << 20),
            map_memory: Some(2 << 30),
            max_connections: Some(64),
            on_full: Some(OnFull::Error),
            full_wait: Some(Duration::from_secs(5)),
            device_discard: Some(DeviceDiscard::Off),
            nvme_polling: Some(NvmePolling::Always),
            degraded_read_only: Some(true),
            log_level: Some("warn".to_owned()),
            log_format: Some(LogFormat::Json),
        };
        assert_eq!(config, expected);
        assert_eq!(parse(""), Ok(FileConfig::default()));
        assert_eq!(parse("pool = \"p\"").unwrap().pools, [PathBuf::from("p")]);
        assert_eq!(parse("memory = 65536").unwrap().memory, Some(65536));
    }

    #[test]
    fn addresses() {
        for (text, address) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:2", "[::1]:2"),
            ("::1", "[::1]:10809"),
            ("0.0.0.0", "0.0.0.0:10809"),
            (":3", "0.0.0.0:3"),
            ("localhost:4", "127.0.0.1:4"),
            ("localhost", "127.0.0.1:10809"),
        ] {
            assert_eq!(parse_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in
            ["", ":", "a b:1", "localhost:x", "1.2.3.4:70000", "[::1", "no-such-host.invalid:1"]
        {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_with_line_and_suggestion() {
        for (text, message) in [
            (
                "\nnbd_socket = \"x\"",
                "f.toml:2: unknown key \"nbd_socket\"; did you mean \"nbd-socket\"?",
            ),
            ("pools = []", "f.toml:1: unknown key \"pools\"; did you mean \"pool\"?"),
            ("[api]\nsocket = 1", "f.toml:1: unknown key \"api\"; did you mean \"api-socket\"?"),
            ("pool = 3", "f.toml:1: pool: expected a string, found integer"),
            (
                "memory = \"1.5G\"",
                "f.toml:1: memory: \"1.5G\" has a fraction; write a whole number of a smaller unit, for example 1536M for 1.5G",
            ),
            ("max-connections = 0", "f.toml:1: max-connections: expected 1 to 4294967295"),
            ("max-connections = -1", "f.toml:1: max-connections: expected 1 to 4294967295"),
            ("on-full = \"hang\"", "f.toml:1: on-full: \"hang\" is neither \"wait\" nor \"error\""),
            ("full-wait = -1", "f.toml:1: full-wait: expected 0 to 86400 seconds"),
            (
                "log-format = \"xml\"",
                "f.toml:1: log-format: \"xml\" is neither \"text\" nor \"json\"",
            ),
            ("api-socket = \"\"", "f.toml:1: api-socket: the path is empty"),
        ] {
            assert_eq!(parse(text).unwrap_err(), message);
        }
        let message = parse("zzzzqqq = 1").unwrap_err();
        assert!(message.contains("the keys are pool, nbd-socket"), "{message}");
        let message = parse("pool = [").unwrap_err();
        assert!(message.starts_with("f.toml: TOML parse error at line 1"), "{message}");
        assert!(parse("nbd-listen = \"nowhere\"").unwrap_err().contains("127.0.0.1:10809"));
    }
}
