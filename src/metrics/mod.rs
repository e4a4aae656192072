//! Names, per-shard plain counters, drop reasons, Prometheus text.

/// What one shard has counted since its start, and its streams' figures.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {}
