//! Every bound with its derivation, and what it means when the bound is reached.

use std::time::Duration;

/// Largest datagram that is received whole: an Ethernet frame's payload and some; nothing legal is larger (media
/// is at most 1500 bytes, a DTLS flight is cut into MTU-sized records). A longer one arrives cut and is dropped.
pub const DATAGRAM_BYTES_MAX: usize = 2048;

/// Largest message: datagrams of one sender that the kernel merged (UDP GRO) are at most one IP packet.
pub const MERGED_BYTES_MAX: usize = 65_535;

/// Datagrams per turn, from which on no more are taken: the last message may hold 64 of them. A multishot receive hands
/// over 32 messages per task-work run.
pub const RECV_BATCH_DATAGRAMS: usize = 128;

/// Memory of one receive batch: every datagram at its largest, and a last message of many.
pub const RECV_BATCH_BYTES: usize = RECV_BATCH_DATAGRAMS * DATAGRAM_BYTES_MAX + MERGED_BYTES_MAX;

/// Messages per flush: beyond 32 a larger `sendmmsg` gains nothing, 64 still fit one `iovec` page.
pub const SEND_BATCH_MESSAGES: usize = 64;

/// Bytes per flush: what is written is still in the L2 cache when the kernel copies it.
pub const SEND_BATCH_BYTES: usize = 100_000;

/// Shards at most: one bit each in a stream's interest mask.
pub const SHARDS_MAX: usize = 64;

/// Messages that a full socket puts off for one flush: half of one, so that new ones still fit beside them. When more
/// wait, audio is dropped before control.
pub const KEPT_MESSAGES_MAX: usize = SEND_BATCH_MESSAGES / 2;

/// Destinations per shard that are remembered because segmentation is refused on the way to them: beyond that the oldest
/// is forgotten, and costs one refused call when it is sent to again.
pub const SINGLES_ROUTES_MAX: usize = 256;

/// New destinations of one socket that refuse segmentation in a row, none accepting it in between: then it is the device,
/// and the socket sends singles for good.
pub const SINGLES_ROUTES_IN_A_ROW_MAX: u32 = 16;

/// Messages from other shards that wait for one shard: 50 ms of 80,000 packets/s. Filling this means that the
/// shard is stuck or far behind; what does not fit is dropped and counted, viewers repair it by NACK or PLI.
pub const PEER_QUEUE_MESSAGES: usize = 4096;

/// Commands from control that wait for one shard. Filling this means the shard has stalled, not that a burst
/// came: what does not fit waits at control, and while it does, new offers are answered 503.
pub const COMMAND_QUEUE: usize = 4096;

/// Remote addresses that one session may use at a time: Safari uses two or three, a phone that changes network one
/// more. The least recently authenticated one goes first.
pub const REMOTES_PER_SESSION_MAX: usize = 8;

/// Remote addresses that one ICE session may come from in all, for str0m keeps each as a candidate: a NAT that gives out a new
/// port every 30 s needs eight hours to get there. Requests from further ones are dropped; an ICE restart begins anew.
pub const REMOTES_IN_ALL_MAX: usize = 1024;

/// From the answer to DTLS connected: RFC 8863 §4 waits 39.5 s for slow candidates.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(40);

/// Without any authenticated packet for so long a session is dead (RFC 7675 §5.1).
pub const DEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Both ufrags of an ICE restart stay routable for so long.
pub const ICE_RESTART_OVERLAP: Duration = Duration::from_secs(30);

/// A session that ended is remembered for so long: DELETE again is 200, PATCH 404.
pub const TOMBSTONE: Duration = Duration::from_secs(60);

/// Viewers wait so long for a publisher that went away.
pub const PUBLISHER_GRACE: Duration = Duration::from_secs(30);

/// A viewer of the legacy endpoint waits so long for the first publisher.
pub const VIEWER_WAIT: Duration = Duration::from_secs(60);

/// Largest datagram with DTLS or media: an Ethernet MTU. str0m's own packet memory is 2000 bytes.
pub const MEDIA_DATAGRAM_BYTES_MAX: usize = 1500;

/// Header and sender's SSRC (8), index (4) and the shortest tag that we negotiate (10): RFC 3711 §3.4.
pub const SRTCP_BYTES_MIN: usize = 22;

/// How often a shard reports its figures to control.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Addresses that each rate limit of HTTP remembers: 10,000 at some 64 bytes. When all of them are busy, new addresses
/// wait until one has been quiet.
pub const RATE_LIMIT_ADDRESSES: usize = 10_000;

/// The same offer again within this time is a retry of a request whose answer was lost.
pub const POST_RETRY_WINDOW: Duration = Duration::from_secs(10);

/// A shard answers a command within a turn; one that takes longer has stalled.
pub const SHARD_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A publisher that sent nothing for so long may be replaced by an offer that could also watch.
pub const PUBLISHER_SILENT: Duration = Duration::from_secs(2);

/// Candidates that one session may trickle in all.
pub const TRICKLED_CANDIDATES_MAX: usize = 32;

/// A shard with neither media nor handshakes for so long is quiet.
pub const QUIET_AFTER: Duration = Duration::from_secs(1);

/// What a quiet shard rests after each turn, so that the checks and reports of many viewers share one wake-up. The first packets
/// after a quiet time may come so much later.
pub const QUIET_REST: Duration = Duration::from_millis(10);

/// How often the legacy endpoint's publishers are asked for a keyframe (the 2019 example's `rtcpPLIInterval`).
pub const LEGACY_PLI_INTERVAL: Duration = Duration::from_secs(3);

/// From a request's head to its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sessions that ended and are remembered: 60 s of 170 sessions/s. Beyond that the oldest are forgotten early, and a
/// repeated DELETE gets 404.
pub const TOMBSTONES_MAX: usize = 10_000;

/// Events of shards that wait for control: a few per session that comes or goes. When it is full a shard keeps the rest
/// and offers them again; nothing is lost.
pub const EVENT_QUEUE: usize = 4096;

/// Packets of a track that are kept for NACKs: 1 s of 10 Mbit/s. A power of two.
pub const STORE_PACKETS: usize = 1024;

/// Packets of a track that wait for their turn on one shard: a keyframe of 2 MB. Filling this means that the shard cannot
/// send what it is given; what does not fit is counted, and answered from the store when viewers NACK it.
pub const TRACK_QUEUE_PACKETS: usize = 2048;

/// Resends that wait for their turn on one shard: what sixteen viewers that lose everything may ask for at once. When it is
/// full, NACKs are not answered (and counted); a viewer repeats what it still misses.
pub const RESEND_QUEUE_PACKETS: usize = 4096;

/// Bytes that wait for one TCP connection: 1 s of 2 Mbit/s. What is older than that is worth less to a live viewer than
/// what comes next. Above it whole video frames are dropped, then audio, control last.
pub const STREAM_QUEUE_BYTES: usize = 256 * 1024;

/// TCP connections of a node in all: with full queues they hold 256 MB. Beyond it new ones are closed at once; viewers over
/// TCP are the exception.
pub const STREAMS_MAX: usize = 1024;

/// TCP connections of one address (IPv6: of one /64) that no session has taken yet: a browser opens one for each of its
/// addresses and ours, and an office's viewers may share an address.
pub const UNADOPTED_STREAMS_PER_IP_MAX: usize = 32;

/// From a TCP connection to the end of its first frame, which must be a STUN request for a session here.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// TCP connections on their way to one shard, which takes them within a turn. When it is full the connection is closed; its
/// client tries again.
pub const ACCEPTED_QUEUE: usize = 256;

/// Simulcast layers of one video: browsers and OBS send three at most. An offer with more is refused.
pub const LAYERS_MAX: usize = 4;

/// Packets to one viewer whose sending is remembered until transport-wide feedback tells of them: 1 s of 10 Mbit/s, and
/// feedback comes every 50 to 100 ms. Feedback on older ones is ignored. A power of two.
pub const SEND_HISTORY_PACKETS: usize = 1024;

/// Packets that one feedback message may speak of: twice what is remembered, so that a report after an outage is still
/// read. Eight bytes could claim 65,535; a message that speaks of more is malformed.
pub const FEEDBACK_STATUSES_MAX: usize = 2 * SEND_HISTORY_PACKETS;
