//! `/metrics`: a snapshot in the OpenMetrics text format, which Prometheus reads.
//!
//! Everything is encoded from one [`Snapshot`], so a scrape never mixes two moments and the data
//! path keeps no metric objects.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::backend::Snapshot;
use super::types::{Pool, PoolState, Volume};
use crate::node::NodeStats;

/// The format's media type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Volumes that have metrics of their own, the first by name: a scrape must stay small whatever there is.
pub const VOLUMES_MAX: usize = 1000;

/// The metrics as text.
///
/// # Errors
/// Never in practice: writing to memory does not fail.
pub fn encode(snapshot: Snapshot, uptime: Duration) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("flagstone");
    registry.register_collector(Box::new(Scrape { snapshot, uptime }));
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    uptime: Duration,
}

type StatsMetric = (&'static str, &'static str, fn(&NodeStats) -> u64);
type PoolMetric = (&'static str, &'static str, fn(&Pool) -> u64);
type VolumeMetric = (&'static str, &'static str, fn(&Volume) -> u64);

const COUNTERS: [StatsMetric; 14] = [
    ("nbd_connections_accepted", "Connections accepted", |s| s.connections_accepted),
    ("nbd_connections_refused", "Connections turned away: too many", |s| s.connections_refused),
    ("nbd_connections_dropped", "Connections dropped for what they did", |s| s.connections_dropped),
    ("nbd_reads", "READ requests answered", |s| s.reads),
    ("nbd_writes", "WRITE requests answered", |s| s.writes),
    ("nbd_flushes", "FLUSH requests answered", |s| s.flushes),
    ("nbd_zeroes", "TRIM and WRITE_ZEROES requests answered", |s| s.zeroes),
    ("nbd_errors", "Requests answered with an error", |s| s.errors),
    ("nbd_read_bytes", "Bytes sent as data of READs", |s| s.read_bytes),
    ("nbd_written_bytes", "Bytes taken as data of WRITEs", |s| s.written_bytes),
    ("device_reads", "Reads submitted to devices", |s| s.device_reads),
    ("device_writes", "Writes submitted to devices", |s| s.device_writes),
    ("device_flushes", "Flushes submitted to devices", |s| s.device_flushes),
    ("ring_enters", "Calls of io_uring_enter", |s| s.ring_enters),
];

const GAUGES: [StatsMetric; 4] = [
    ("nbd_connections", "Connections now", |s| u64::from(s.connections_now)),
    ("nbd_requests_in_flight", "Requests without an answer yet", |s| u64::from(s.requests_now)),
    ("buffer_used_bytes", "Bytes of the buffer arena in use", |s| s.buffer_bytes_now),
    ("buffer_bytes", "Bytes of the buffer arena", |s| s.buffer_bytes_total),
];

const POOL_COUNTERS: [PoolMetric; 9] = [
    ("pool_checkpoints", "Checkpoints since opening", |p| p.checkpoints),
    ("pool_written_bytes", "Bytes written for clients since opening", |p| p.written_bytes),
    ("pool_moved_bytes", "Bytes moved by the cleaner since opening", |p| p.moved_bytes),
    ("pool_rewritten_bytes", "Bytes rewritten after scans since opening", |p| p.rewritten_bytes),
    ("pool_scrubs", "Scrubs that came to their end since opening", |p| p.scrubs),
    ("pool_scrub_read_bytes", "Bytes read by scrubs since opening", |p| p.scrub_read_bytes),
    ("pool_scrub_findings", "Damaged blocks that scrubs found since opening", |p| p.scrub_findings),
    ("pool_discarded_bytes", "Bytes of free segments discarded since opening", |p| {
        p.discarded_bytes
    }),
    ("pool_scrub_repairs", "Damaged metadata written anew since opening", |p| p.scrub_repairs),
];

const POOL_GAUGES: [PoolMetric; 22] = [
    ("pool_device_bytes", "Size of the pool's file or device", |p| p.device_bytes),
    ("pool_capacity_bytes", "Bytes that volumes' data can take", |p| p.capacity_bytes),
    ("pool_used_bytes", "Bytes that volumes' data takes", |p| p.used_bytes),
    ("pool_free_bytes", "Bytes that can be written now", |p| p.free_bytes),
    ("pool_reserved_bytes", "Bytes that reservations hold back beyond what is used", |p| {
        p.reserved_bytes
    }),
    ("pool_map_bytes", "Memory that the map takes", |p| p.map_bytes),
    ("pool_debt_bytes", "Bytes that are dead but not reclaimed", |p| p.debt_bytes),
    ("pool_log_debt_bytes", "Bytes sealed since the last checkpoint began", |p| p.log_debt_bytes),
    ("pool_warning_percent", "Highest of 75, 85, 93 % of the capacity that is used, or 0", |p| {
        u64::from(p.warning_percent.unwrap_or(0))
    }),
    ("pool_waiting", "Requests that wait for space", |p| u64::from(p.waiting)),
    ("pool_volumes", "Volumes, also those without metrics of their own", |p| u64::from(p.volumes)),
    ("pool_provisioned_bytes", "Sum of the volumes' sizes", |p| p.provisioned_bytes),
    ("pool_segments", "Segments of the log", |p| u64::from(p.segments)),
    ("pool_segments_free", "Segments that may be written", |p| u64::from(p.segments_free)),
    ("pool_snapshots", "Snapshots of the pool's volumes", |p| u64::from(p.snapshots)),
    ("pool_counting", "1 while live blocks are counted after opening", |p| u64::from(p.counting)),
    ("pool_map_damaged", "1 if a part of the map can't be read until the next opening", |p| {
        u64::from(p.map_damaged)
    }),
    ("pool_running", "1 if the pool serves, 0 if it has failed", |p| {
        u64::from(p.state != PoolState::Failed)
    }),
    ("pool_degraded", "1 if a device is missing or has failed", |p| {
        u64::from(p.state == PoolState::Degraded)
    }),
    ("pool_read_only", "1 if the pool takes no writes", |p| u64::from(p.read_only)),
    ("pool_devices_failed", "Devices that failed a write or flush", |p| {
        p.devices
            .iter()
            .filter(|device| device.reason.is_some() || device.state == "failed")
            .count() as u64
    }),
    ("pool_deleted", "1 if the pool's file has been deleted", |p| {
        u64::from(p.state == PoolState::Deleted)
    }),
];

const VOLUME_COUNTERS: [VolumeMetric; 7] = [
    ("volume_reads", "Reads of the volume answered", |v| v.io.reads),
    ("volume_writes", "Writes to the volume answered", |v| v.io.writes),
    ("volume_flushes", "Flushes of the volume answered", |v| v.io.flushes),
    ("volume_zeroes", "Discards and zeroings of the volume answered", |v| v.io.zeroes),
    ("volume_errors", "Requests to the volume answered with an error", |v| v.io.errors),
    ("volume_read_bytes", "Bytes read of the volume", |v| v.io.read_bytes),
    ("volume_written_bytes", "Bytes written to the volume", |v| v.io.written_bytes),
];

const VOLUME_GAUGES: [VolumeMetric; 6] = [
    ("volume_size_bytes", "Size that clients see", |v| v.size_bytes),
    ("volume_mapped_bytes", "Bytes of the volume that hold data", |v| v.mapped_bytes),
    ("volume_exclusive_bytes", "Bytes of it that no snapshot has", |v| v.exclusive_bytes),
    ("volume_kept_bytes", "Bytes of zeroes whose space is kept", |v| v.kept_bytes),
    ("volume_reserved_bytes", "Bytes that no other volume may take", |v| v.reserved_bytes),
    ("volume_connections", "NBD connections that use the volume", |v| u64::from(v.connections)),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        encoder
            .encode_descriptor("build", "The program", None, MetricType::Info)?
            .encode_info(&labels)?;
        let uptime = self.uptime.as_secs();
        gauge(&mut encoder, "uptime_seconds", "Seconds since the daemon became ready", uptime)?;
        for (name, help, value) in GAUGES {
            gauge(&mut encoder, name, help, value(&self.snapshot.stats))?;
        }
        for (name, help, value) in COUNTERS {
            let metric = ConstCounter::new(value(&self.snapshot.stats));
            let kind = MetricType::Counter;
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        for (name, help, value) in POOL_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for pool in &self.snapshot.pools {
                let labels = [("pool", pool.path.as_str()), ("uuid", pool.uuid.as_str())];
                ConstCounter::new(value(pool)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in POOL_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for pool in &self.snapshot.pools {
                let labels = [("pool", pool.path.as_str()), ("uuid", pool.uuid.as_str())];
                ConstGauge::new(value(pool)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in VOLUME_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for volume in &self.snapshot.volumes {
                let labels = [("pool", volume.pool.as_str()), ("volume", volume.name.as_str())];
                ConstCounter::new(value(volume)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in VOLUME_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for volume in &self.snapshot.volumes {
                let labels = [("pool", volume.pool.as_str()), ("volume", volume.name.as_str())];
                ConstGauge::new(value(volume)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
