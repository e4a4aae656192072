//! Every session as control knows it: by number, by the token of its URL, and for a while after its end.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use str0m::media::MediaKind;

use super::rate::Bucket;
use crate::id::SessionId;
use crate::limits;
use crate::session::{CloseReason, Role};
use crate::shard::message::{RequestId, Wish};
use crate::shard::placement::Slot;
use crate::units::Instant;
use crate::wire::codec::Format;
use crate::wire::sdp::restart_fragment;

/// One session.
pub(super) struct Record {
    pub id: SessionId,
    /// What names it in its URL.
    pub token: String,
    pub role: Role,
    pub slot: Arc<Slot>,
    pub created: Instant,
    /// What counts as its client for limits; `None` when limits do not hold for it.
    pub client: Option<IpAddr>,
    pub established: bool,
    /// A shard was told to close it.
    pub closing: Option<CloseReason>,
    /// Our finished answer; later what a restart needs of it, see [`Record::forget_answer`].
    pub answer: String,
    pub ice: Ice,
    /// Refused before: see `patch_rate`.
    pub patches: Bucket,
    pub candidates_trickled: usize,
    /// A viewer that came before any publisher stays until then.
    pub wait_until: Instant,
    /// Which m-line of a viewer's offer is video.
    pub video_line: Option<usize>,
    /// What a viewer has chosen before its shard could be told.
    pub wish: Option<Wish>,
    /// Event streams that were opened for it, those that are gone among them.
    pub event_streams: u32,
    /// What a publisher's tracks carry, as seen in its packets: audio and video.
    pub tracks: [Option<Format>; 2],
}

/// One session's ICE, and the one before.
pub(super) struct Ice {
    /// Ours.
    pub ufrag: String,
    /// Ours before a restart: routable for a while.
    pub old_ufrag: Option<String>,
    /// When the restart was.
    pub restarted: Instant,
    /// The client's.
    pub remote_ufrag: String,
    pub old_remote_ufrag: Option<String>,
    /// With quotes, as in the header.
    pub etag: String,
    pub old_etag: Option<String>,
    /// The restart's answer, in case that it got lost.
    pub restart_reply: Option<String>,
    /// A restart that a shard works on.
    pub restarting: Option<RequestId>,
}

impl Record {
    /// Keeps of the answer only what a restart needs: nobody asks for it again once the retry window has passed.
    pub fn forget_answer(&mut self) {
        self.answer = restart_fragment(&self.answer, "", "");
        self.answer.shrink_to_fit();
    }

    pub fn stream_name(&self) -> &str {
        &self.slot.stream.name
    }

    /// The formats that a publisher sends now.
    pub fn published(&self) -> Vec<Format> {
        self.tracks.iter().flatten().copied().collect()
    }

    pub fn set_track(&mut self, kind: MediaKind, format: Format) {
        self.tracks[kind as usize] = Some(format);
    }

    /// The path that its offer came to.
    pub fn endpoint_path(&self) -> String {
        let endpoint = match self.role {
            Role::Publisher => "whip",
            Role::Viewer => "whep",
        };
        format!("/{endpoint}/{}", self.stream_name())
    }
}

/// All sessions, and those that ended lately.
#[derive(Default)]
pub(super) struct Sessions {
    records: FxHashMap<SessionId, Record>,
    by_token: FxHashMap<String, SessionId>,
    last: u64,
    tombstones: FxHashMap<String, Instant>,
    /// In the order of their expiry.
    buried: VecDeque<(Instant, String)>,
    /// Sessions that are answered but not connected: in all, and by client.
    unestablished: usize,
    unestablished_by_client: FxHashMap<IpAddr, usize>,
}

impl Sessions {
    pub fn next_id(&mut self) -> SessionId {
        self.last += 1;
        SessionId(self.last)
    }

    /// Adds one that is not established.
    pub fn insert(&mut self, record: Record) {
        self.unestablished += 1;
        if let Some(client) = record.client {
            *self.unestablished_by_client.entry(client).or_default() += 1;
        }
        self.by_token.insert(record.token.clone(), record.id);
        self.records.insert(record.id, record);
    }

    /// The client has connected. Returns whether that is news.
    pub fn establish(&mut self, id: SessionId) -> bool {
        let Some(record) = self.records.get_mut(&id).filter(|r| !r.established) else { return false };
        record.established = true;
        let client = record.client;
        self.settle(client);
        true
    }

    /// Takes one out; its URL is remembered for a while.
    pub fn remove(&mut self, now: Instant, id: SessionId) -> Option<Record> {
        let record = self.records.remove(&id)?;
        self.by_token.remove(&record.token);
        if !record.established {
            self.settle(record.client);
        }
        while let Some((until, token)) = self.buried.front() {
            if *until > now && self.buried.len() < limits::TOMBSTONES_MAX {
                break;
            }
            self.tombstones.remove(token);
            self.buried.pop_front();
        }
        let until = now + limits::TOMBSTONE;
        self.tombstones.insert(record.token.clone(), until);
        self.buried.push_back((until, record.token.clone()));
        Some(record)
    }

    fn settle(&mut self, client: Option<IpAddr>) {
        self.unestablished = self.unestablished.saturating_sub(1);
        let Some(client) = client else { return };
        if let Some(count) = self.unestablished_by_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.unestablished_by_client.remove(&client);
            }
        }
    }

    pub fn get(&self, id: SessionId) -> Option<&Record> {
        self.records.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Record> {
        self.records.get_mut(&id)
    }

    /// By the token of its URL: an unguessable one, so the time that the look-up takes tells nothing.
    pub fn find(&self, token: &str) -> Option<&Record> {
        self.records.get(self.by_token.get(token)?)
    }

    pub fn ended_lately(&self, now: Instant, token: &str) -> bool {
        self.tombstones.get(token).is_some_and(|until| *until > now)
    }

    pub fn ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.records.keys().copied().collect();
        // The map's order is arbitrary; commands must not be.
        ids.sort_unstable();
        ids
    }

    pub fn unestablished(&self) -> usize {
        self.unestablished
    }

    pub fn unestablished_of(&self, client: IpAddr) -> usize {
        self.unestablished_by_client.get(&client).copied().unwrap_or(0)
    }
}
