//! What is counted: per shard in plain fields, handed over once a second, summed and rendered by control.

mod histogram;
mod prometheus;

use crate::id::ShardId;

pub use histogram::{ForwardLatency, FractionLost, Histogram, RoundTrip, Scale};
pub use prometheus::{Gauges, render};

/// Why a datagram or a packet went no further. Each received datagram ends in exactly one of consumed, forwarded, or
/// one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// No protocol of ours by its first bytes (RFC 7983), or too short for what it claims to be.
    Unclassified,
    /// Longer than any media packet.
    Oversize,
    /// A STUN message that does not hold together.
    StunMalformed,
    /// A STUN message that no ICE-lite agent expects: not a Binding request.
    StunUnexpected,
    /// A Binding request for nobody here.
    StunUnknownUfrag,
    /// A Binding request that its session's password does not authenticate.
    StunBadIntegrity,
    /// A Binding request from one more 4-tuple of a session that has had too many.
    StunTooManyRemotes,
    /// A Binding request for a session that has just ended.
    SessionGone,
    /// DTLS from an address that no authenticated STUN has validated.
    DtlsUnknownRemote,
    /// Media from an address that no authenticated STUN has validated.
    MediaUnknownRemote,
    /// Media before its session's DTLS is up.
    MediaBeforeDtls,
    /// SRTCP too short for header, tag and index.
    RtcpTooShort,
    /// Right first bytes, but str0m cannot read it.
    Unreadable,
    /// RTP that gave no media: replayed, forged, of no negotiated payload type, a repair that came twice, or RTX padding from before
    /// there was media.
    RtpDiscarded,
    /// The queue to the shard that owns the session is full.
    PeerQueueFull,
    /// Handed over by another shard, but this one does not own the session either.
    Misrouted,
    /// Media of a publisher that was replaced, or from before a switch.
    Stale,
    /// Video that nobody can decode yet: everything waits for a keyframe.
    AwaitingKeyframe,
    /// Nothing but padding.
    Padding,
    /// A copy that its viewer has no payload type for.
    NoPayloadType,
    /// A copy from before its viewer's first packet, or one that a replay has sent already.
    BeforeStart,
    /// A track's queue is full; answered from the store when viewers NACK it.
    TrackQueueFull,
    /// SRTCP of a viewer that is replayed, forged or malformed.
    RtcpDiscarded,
    /// A NACKed packet: too many wait to be sent again.
    ResendQueueFull,
}

impl DropReason {
    pub const ALL: [DropReason; 24] = [
        DropReason::Unclassified,
        DropReason::Oversize,
        DropReason::StunMalformed,
        DropReason::StunUnexpected,
        DropReason::StunUnknownUfrag,
        DropReason::StunBadIntegrity,
        DropReason::StunTooManyRemotes,
        DropReason::SessionGone,
        DropReason::DtlsUnknownRemote,
        DropReason::MediaUnknownRemote,
        DropReason::MediaBeforeDtls,
        DropReason::RtcpTooShort,
        DropReason::Unreadable,
        DropReason::RtpDiscarded,
        DropReason::PeerQueueFull,
        DropReason::Misrouted,
        DropReason::Stale,
        DropReason::AwaitingKeyframe,
        DropReason::Padding,
        DropReason::NoPayloadType,
        DropReason::BeforeStart,
        DropReason::TrackQueueFull,
        DropReason::RtcpDiscarded,
        DropReason::ResendQueueFull,
    ];

    /// The value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Unclassified => "unclassified",
            DropReason::Oversize => "oversize",
            DropReason::StunMalformed => "stun_malformed",
            DropReason::StunUnexpected => "stun_unexpected",
            DropReason::StunUnknownUfrag => "stun_unknown_ufrag",
            DropReason::StunBadIntegrity => "stun_bad_integrity",
            DropReason::StunTooManyRemotes => "stun_too_many_remotes",
            DropReason::SessionGone => "session_gone",
            DropReason::DtlsUnknownRemote => "dtls_unknown_remote",
            DropReason::MediaUnknownRemote => "media_unknown_remote",
            DropReason::MediaBeforeDtls => "media_before_dtls",
            DropReason::RtcpTooShort => "rtcp_too_short",
            DropReason::Unreadable => "unreadable",
            DropReason::RtpDiscarded => "rtp_discarded",
            DropReason::PeerQueueFull => "peer_queue_full",
            DropReason::Misrouted => "misrouted",
            DropReason::Stale => "stale",
            DropReason::AwaitingKeyframe => "awaiting_keyframe",
            DropReason::Padding => "padding",
            DropReason::NoPayloadType => "no_payload_type",
            DropReason::BeforeStart => "before_start",
            DropReason::TrackQueueFull => "track_queue_full",
            DropReason::RtcpDiscarded => "rtcp_discarded",
            DropReason::ResendQueueFull => "resend_queue_full",
        }
    }
}

/// Drops by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    pub fn count_many(&mut self, reason: DropReason, times: u64) {
        self.0[reason as usize] += times;
    }

    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a shard counts. Cumulative since its start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub datagrams_received: u64,
    pub bytes_received: u64,
    /// STUN, DTLS and RTCP that reached their session.
    pub datagrams_consumed: u64,
    /// Of these, Binding requests that lacked PRIORITY.
    pub stun_repaired: u64,
    /// Datagrams of sessions that other shards own, given to them.
    pub datagrams_handed_over: u64,
    /// Datagrams of sessions of this shard, given by others.
    pub datagrams_taken_over: u64,
    pub datagrams_sent: u64,
    /// What held them: with segmentation, one message is up to 16 datagrams and one way through the kernel.
    pub messages_sent: u64,
    pub bytes_sent: u64,
    /// Dropped because the socket's send buffer was full.
    pub send_would_block: u64,
    pub send_errors: u64,
    /// Publishers' packets that were decrypted here.
    pub media_received: u64,
    pub media_received_bytes: u64,
    /// Copies given to viewers' sessions.
    pub media_forwarded: u64,
    pub media_forwarded_bytes: u64,
    /// Of these, what a full socket did not take.
    pub media_unsent: u64,
    /// NACKed packets that were asked for and that were sent again.
    pub nacks_received: u64,
    pub packets_resent: u64,
    /// RTP and RTCP that str0m wanted to send beside a viewer's own media plane. Stays 0.
    pub str0m_media_suppressed: u64,
    /// Packets pushed to other shards.
    pub peer_packets_sent: u64,
    /// Viewers' PLI and FIR, and joins.
    pub keyframe_requests_received: u64,
    pub keyframe_requests_sent: u64,
    pub keyframes_received: u64,
    /// Viewers that were started from the past.
    pub replays_started: u64,
    /// Packets of nothing but padding, to probe a viewer's path.
    pub padding_sent: u64,
    /// Of viewers, from one layer to another.
    pub layer_switches: u64,
    pub sessions_started: u64,
    pub sessions_ended: u64,
    pub drops: Drops,
    /// Of each copy: from the receipt of its packet to the return of the flush that sent it.
    pub latency: Histogram<ForwardLatency>,
    /// Of each viewer's reports on its video.
    pub fraction_lost: Histogram<FractionLost>,
    pub round_trip: Histogram<RoundTrip>,
}

impl Counters {
    /// One message of copies was given to a viewer.
    pub fn count_forwarded(&mut self, packets: u32, payload_bytes: u32) {
        self.media_forwarded += u64::from(packets);
        self.media_forwarded_bytes += u64::from(payload_bytes);
    }
}

/// One shard's figures as they are rendered.
#[derive(Clone, Debug)]
pub struct ShardFigures {
    pub shard: ShardId,
    pub counters: Counters,
    pub publishers: usize,
    pub viewers: usize,
    /// Events of the I/O backend, filled in by the driver: name and count.
    pub backend: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place_and_its_own_name() {
        let mut drops = Drops::default();
        let mut names = std::collections::BTreeSet::new();
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            drops.count(reason);
            assert_eq!(drops.of(reason), 1);
            assert!(names.insert(reason.name()));
        }
        assert_eq!(drops.total(), DropReason::ALL.len() as u64);
    }
}
