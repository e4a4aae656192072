//! The way out that both backends share: a batch becomes message headers, one run per socket, and each result is
//! accounted; segmentation that the kernel refuses is undone here, and a full socket drops by class.
//!
//! ```text
//!  batch ─ run of one socket ─> list of 64 ─ transmit ─┬─ sent ───────────────────────────────> report
//!                                 ^    ^               ├─ segmentation refused: again as singles
//!                                 │    └───────────────┤
//!                                 │                    └─ full ─┬─ video: dropped, and the rest of it untried
//!                                 └── once more, control first ─┴─ audio, control ─> kept for one flush, or dropped
//! ```

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use tracing::warn;

use super::address::Name;
use super::routes::Routes;
use super::tcp::Streams;
use super::{BackendStats, SendReport};
use crate::datagram::{Class, Kept, Outgoing, SendBatch, Unsent};
use crate::limits;

/// Headers for one system call.
const MESSAGES: usize = limits::SEND_BATCH_MESSAGES;

/// A control message that asks for UDP_SEGMENT: what `CMSG_FIRSTHDR` and `CMSG_DATA` would lay out.
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    bytes: u16,
    /// Up to the alignment of a cmsghdr, as CMSG_SPACE counts it.
    pad: [u8; 6],
}

const SEGMENT_CONTROL: SegmentControl = SegmentControl {
    header: libc::cmsghdr {
        // SAFETY: pure arithmetic on the length.
        cmsg_len: unsafe { libc::CMSG_LEN(2) } as _,
        cmsg_level: libc::SOL_UDP,
        cmsg_type: libc::UDP_SEGMENT,
    },
    bytes: 0,
    pad: [0; 6],
};

const _: () = {
    // SAFETY: pure arithmetic on the length.
    assert!(size_of::<SegmentControl>() == unsafe { libc::CMSG_SPACE(2) } as usize);
    assert!(mem::offset_of!(SegmentControl, bytes) == size_of::<libc::cmsghdr>());
};

/// Up to [`MESSAGES`] messages of one socket, as `sendmmsg` and `IORING_OP_SENDMSG` want them.
///
/// The headers point into the arrays beside them and into the batch; `Egress::send` keeps both in place until the
/// kernel is done, and clears the list before it returns.
pub(super) struct Messages {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[SegmentControl]>,
    accounts: Box<[Account]>,
    len: usize,
}

/// Bytes of a message of the batch that are sent in one piece.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Index in the batch.
    source: usize,
    /// In its data.
    bytes: Range<usize>,
    segment: Option<u16>,
    class: Class,
}

impl Part {
    fn whole(source: usize, message: &Outgoing<'_>) -> Part {
        Part { source, bytes: 0..message.data.len(), segment: message.segment, class: message.label.class }
    }

    /// Its datagrams, one by one.
    fn singles(&self) -> impl Iterator<Item = Part> + use<> {
        let Part { source, bytes, segment, class } = self.clone();
        let step = segment.map_or(usize::MAX, usize::from).max(1);
        (0..segments(bytes.len(), segment) as usize).map(move |i| {
            let from = bytes.start + i * step;
            Part { source, bytes: from..from.saturating_add(step).min(bytes.end), segment: None, class }
        })
    }

    fn datagrams(&self) -> u64 {
        segments(self.bytes.len(), self.segment)
    }
}

/// What a message was made of, and what became of it.
#[derive(Clone, Default)]
struct Account {
    part: Part,
    /// Bytes sent, or minus errno.
    result: i32,
}

impl Messages {
    fn new() -> Messages {
        // SAFETY: for both types all zeroes is a valid value: null pointers, zero lengths and flags.
        let (header, iovec) = unsafe { mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Messages {
            headers: vec![header; MESSAGES].into(),
            iovecs: vec![iovec; MESSAGES].into(),
            names: vec![Name::ZERO; MESSAGES].into(),
            controls: (0..MESSAGES).map(|_| SEGMENT_CONTROL).collect(),
            accounts: vec![Account::default(); MESSAGES].into(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The header of message `index`; valid until the list is cleared.
    pub(super) fn header(&self, index: usize) -> *const libc::msghdr {
        &raw const self.headers[..self.len][index].msg_hdr
    }

    /// Notes bytes sent, or minus errno.
    pub(super) fn set_result(&mut self, index: usize, result: i32) {
        self.accounts[..self.len][index].result = result;
    }

    fn is_video(&self, index: usize) -> bool {
        self.accounts[..self.len][index].part.class == Class::Video
    }

    fn is_full(&self) -> bool {
        self.len == MESSAGES
    }

    fn push(&mut self, batch: &SendBatch, part: Part) {
        let i = self.len;
        let message = batch.get(part.source);
        let data = &message.data[part.bytes.clone()];
        self.iovecs[i] = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        let header = &mut self.headers[i].msg_hdr;
        header.msg_namelen = self.names[i].write(message.remote);
        header.msg_name = (&raw mut self.names[i]).cast();
        header.msg_iov = &raw mut self.iovecs[i];
        header.msg_iovlen = 1;
        match part.segment {
            Some(bytes) if part.datagrams() > 1 => {
                self.controls[i].bytes = bytes;
                header.msg_control = (&raw mut self.controls[i]).cast();
                header.msg_controllen = size_of::<SegmentControl>() as _;
            }
            _ => {
                header.msg_control = ptr::null_mut();
                header.msg_controllen = 0;
            }
        }
        self.accounts[i] = Account { part, result: 0 };
        self.len += 1;
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

/// The prepared messages, and what has been learnt about segmentation here. All lists are reused.
pub(super) struct Egress {
    messages: Messages,
    routes: Routes,
    /// Segmented messages that the kernel refused.
    refused: Vec<(Part, i32)>,
    /// Audio and control that a full socket refused in this run.
    waiting: Vec<Part>,
    retried: Vec<Part>,
    kept: Vec<Kept>,
    unsent: Vec<Unsent>,
}

/// The run of one socket through a batch.
struct Run<'a> {
    batch: &'a SendBatch,
    socket: usize,
    /// The socket's buffer was full in this run.
    full: bool,
    report: &'a mut SendReport,
    stats: &'a mut BackendStats,
    transmit: &'a mut dyn FnMut(usize, &mut Messages),
}

impl Egress {
    pub(super) fn new() -> Egress {
        Egress {
            messages: Messages::new(),
            routes: Routes::default(),
            refused: Vec::with_capacity(MESSAGES),
            waiting: Vec::with_capacity(MESSAGES),
            retried: Vec::with_capacity(MESSAGES),
            kept: Vec::with_capacity(limits::KEPT_MESSAGES_MAX),
            unsent: Vec::with_capacity(MESSAGES),
        }
    }

    /// Sends the batch, one run per socket, then what is for streams; `transmit` tries the messages of the list in order,
    /// though none of class video once the socket was full, sets every result, and has let go of all of them when it
    /// returns.
    pub(super) fn send(
        &mut self,
        batch: &mut SendBatch,
        sockets: usize,
        streams: Option<&mut Streams>,
        stats: &mut BackendStats,
        transmit: &mut dyn FnMut(usize, &mut Messages),
    ) -> SendReport {
        let mut report = SendReport::default();
        self.kept.clear();
        self.unsent.clear();
        // Pass by pass over at most 64 entries: cheaper than sorting, and there are rarely more than two sockets.
        for socket in 0..sockets {
            self.run(&mut Run { batch, socket, full: false, report: &mut report, stats, transmit });
        }
        self.send_rest(batch, sockets, streams, &mut report, stats);
        report.kept = self.kept.iter().map(|k| segments(k.bytes.len(), k.segment)).sum();
        stats.full_kept += report.kept;
        stats.send_errors += report.errors;
        batch.settle(&mut self.kept, &mut self.unsent);
        report
    }

    /// What is for none of the sockets: each connection gets all of its own, then writes once.
    fn send_rest(
        &mut self,
        batch: &SendBatch,
        sockets: usize,
        mut streams: Option<&mut Streams>,
        report: &mut SendReport,
        stats: &mut BackendStats,
    ) {
        for message in batch.iter().filter(|m| usize::from(m.socket.0) >= sockets) {
            match &mut streams {
                Some(streams) if message.socket.is_stream() => {
                    streams.queue(&message, report, stats, &mut self.unsent);
                }
                _ => {
                    debug_assert!(message.socket.is_stream(), "socket {} of {sockets}", message.socket.0);
                    report.errors += segments(message.data.len(), message.segment);
                }
            }
        }
        if let Some(streams) = streams {
            streams.flush(stats);
        }
    }

    fn run(&mut self, run: &mut Run<'_>) {
        let (batch, socket) = (run.batch, run.socket);
        for (source, message) in batch.iter().enumerate().filter(|(_, m)| usize::from(m.socket.0) == socket) {
            let part = Part::whole(source, &message);
            if run.full && part.class == Class::Video {
                self.drop_unsent(run, &part);
            } else if part.datagrams() > 1 && self.routes.takes_singles(run.socket, message.remote.ip()) {
                part.singles().for_each(|single| self.queue(run, single));
            } else {
                self.queue(run, part);
            }
        }
        self.flush(run);
        if self.waiting.is_empty() {
            return;
        }
        mem::swap(&mut self.waiting, &mut self.retried);
        for class in [Class::Control, Class::Audio] {
            for i in 0..self.retried.len() {
                if self.retried[i].class == class {
                    self.queue(run, self.retried[i].clone());
                }
            }
        }
        self.flush(run);
        self.retried.clear();
        // Control stands before audio here.
        for i in 0..self.waiting.len() {
            self.keep(run, i);
        }
        self.waiting.clear();
    }

    fn queue(&mut self, run: &mut Run<'_>, part: Part) {
        self.messages.push(run.batch, part);
        if self.messages.is_full() {
            self.flush(run);
        }
    }

    /// Transmits the list, and what of it is refused as segments again as singles.
    fn flush(&mut self, run: &mut Run<'_>) {
        self.transmit(run);
        for i in 0..self.refused.len() {
            let (part, errno) = self.refused[i].clone();
            let sent_before = run.report.datagrams;
            for single in part.singles() {
                self.messages.push(run.batch, single);
                if self.messages.is_full() {
                    self.transmit(run);
                }
            }
            self.transmit(run);
            // The same bytes pass as singles, so it was the segmentation; a bad address fails both ways.
            if run.report.datagrams > sent_before {
                run.stats.gso_refused += 1;
                if self.routes.refused(run.socket, run.batch.get(part.source).remote.ip()) {
                    let error = io::Error::from_raw_os_error(errno);
                    warn!(socket = run.socket, %error, "segmentation refused: this route gets its datagrams one by one");
                }
            }
        }
        self.refused.clear();
    }

    /// Transmits the list and settles each result. Only segmented messages can be added to `refused`.
    fn transmit(&mut self, run: &mut Run<'_>) {
        if self.messages.len() == 0 {
            return;
        }
        (run.transmit)(run.socket, &mut self.messages);
        for i in 0..self.messages.len {
            let Account { part, result } = mem::take(&mut self.messages.accounts[i]);
            let datagrams = part.datagrams();
            if result >= 0 {
                run.report.messages += 1;
                run.report.datagrams += datagrams;
                run.report.bytes += part.bytes.len() as u64;
                if datagrams > 1 {
                    self.routes.accepted(run.socket);
                }
            } else if is_full(-result) {
                run.full = true;
                if part.class == Class::Video {
                    self.drop_unsent(run, &part);
                } else {
                    self.waiting.push(part);
                }
            } else if datagrams > 1 && refuses_segmentation(-result) {
                self.refused.push((part, -result));
            } else {
                run.report.errors += datagrams;
            }
        }
        self.messages.clear();
    }

    /// Puts `waiting[index]` off for one flush, or drops it: when it has been put off before, or when nothing is left to
    /// drop in its place.
    fn keep(&mut self, run: &mut Run<'_>, index: usize) {
        let part = self.waiting[index].clone();
        if run.batch.get(part.source).again {
            return self.drop_unsent(run, &part);
        }
        let Part { source, bytes, segment, class } = part;
        let kept = Kept { source, bytes, segment };
        if self.kept.len() < limits::KEPT_MESSAGES_MAX {
            return self.kept.push(kept);
        }
        let is_lower = |k: &Kept| run.batch.get(k.source).label.class < class;
        let instead = match self.kept.iter().rposition(is_lower) {
            Some(lower) => mem::replace(&mut self.kept[lower], kept),
            None => kept,
        };
        let class = run.batch.get(instead.source).label.class;
        let Kept { source, bytes, segment } = instead;
        self.drop_unsent(run, &Part { source, bytes, segment, class });
    }

    /// Counts a part that a full socket does not get any more.
    fn drop_unsent(&mut self, run: &mut Run<'_>, part: &Part) {
        let datagrams = part.datagrams();
        run.report.would_block += datagrams;
        run.stats.full_dropped[part.class as usize] += datagrams;
        let Some(owner) = run.batch.get(part.source).label.owner else { return };
        let datagrams = datagrams as u32;
        match self.unsent.last_mut() {
            Some(last) if last.owner == owner => last.datagrams += datagrams,
            _ => self.unsent.push(Unsent { owner, datagrams }),
        }
    }
}

/// Sends the list by `sendmmsg`. The call stops at the first message that fails; that one is noted and the rest gets
/// its own try: 64 times 400 ns at worst, and the buffer may drain meanwhile. What then fits is for audio and control.
pub(super) fn sendmmsg(socket: &UdpSocket, messages: &mut Messages) {
    let mut next = 0;
    let mut full = false;
    while next < messages.len {
        if full && messages.is_video(next) {
            messages.set_result(next, -libc::EAGAIN);
            next += 1;
            continue;
        }
        let end = (next..messages.len).find(|&i| full && messages.is_video(i)).unwrap_or(messages.len);
        let rest = &mut messages.headers[next..end];
        // SAFETY: every header in `rest` points at a name, an iovec and a control buffer of `messages` and, through
        // the iovec, at a range of the batch that `Egress::send` borrows for the whole call. The kernel reads them
        // within this call only.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, libc::MSG_DONTWAIT) };
        match usize::try_from(sent) {
            Ok(sent) => {
                for i in next..next + sent {
                    messages.set_result(i, messages.headers[i].msg_len as i32);
                }
                next += sent.max(1);
            }
            Err(_) => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => {
                    let errno = errno.unwrap_or(libc::EIO);
                    messages.set_result(next, -errno);
                    full |= is_full(errno);
                    next += 1;
                }
            },
        }
    }
}

/// Datagrams in so many bytes.
fn segments(bytes: usize, segment: Option<u16>) -> u64 {
    match segment {
        Some(segment) if segment > 0 => bytes.div_ceil(usize::from(segment)).max(1) as u64,
        _ => 1,
    }
}

/// Seen in the wild when a device or a kernel cannot segment (quinn #1128, #2399; quic-go #3911): no checksum offload,
/// EIO; a tunnel or an old virtio, EINVAL; a path with a smaller MTU, EMSGSIZE (before Linux 6.13 EINVAL).
fn refuses_segmentation(errno: i32) -> bool {
    matches!(errno, libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
}

/// The send buffer (EAGAIN) or what lies below it (ENOBUFS) takes no more for now.
fn is_full(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::ENOBUFS)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::datagram::{Label, SocketId};

    const REMOTE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9));
    const BLOCKED: i32 = -libc::EAGAIN;

    /// Runs a batch through an `Egress` whose kernel answers by `result(datagrams, data)`; returns the report and the
    /// datagram counts of the messages that were tried, in order.
    fn send(
        batch: &mut SendBatch,
        egress: &mut Egress,
        mut result: impl FnMut(u64, &[u8]) -> i32,
    ) -> (SendReport, BackendStats, Vec<u64>) {
        let mut stats = BackendStats::default();
        let mut tried = Vec::new();
        let report = egress.send(batch, 2, None, &mut stats, &mut |_, messages| {
            for i in 0..messages.len() {
                let datagrams = messages.accounts[i].part.datagrams();
                tried.push(datagrams);
                let iovec = messages.iovecs[i];
                // SAFETY: it points into the batch, which `send` borrows.
                let data = unsafe { std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len) };
                messages.set_result(i, result(datagrams, data));
            }
        });
        (report, stats, tried)
    }

    fn batch_of(messages: &[(u8, usize, Option<u16>)]) -> SendBatch {
        let mut batch = SendBatch::new();
        for &(socket, len, segment) in messages {
            batch.push(SocketId(socket), REMOTE, &vec![7; len], segment);
        }
        batch
    }

    /// Messages of one byte, the index, whose owner is the index too.
    fn classes(classes: &[Class]) -> SendBatch {
        let mut batch = SendBatch::new();
        classes.iter().for_each(|class| add(&mut batch, *class));
        batch
    }

    fn add(batch: &mut SendBatch, class: Class) {
        let index = batch.len() as u8;
        batch.room(1)[0] = index;
        batch.commit(SocketId(0), REMOTE, 1, None, Label { class, owner: Some(index.into()) });
    }

    fn owners(batch: &SendBatch) -> Vec<u32> {
        batch.unsent().iter().flat_map(|u| std::iter::repeat_n(u.owner, u.datagrams as usize)).collect()
    }

    fn data(batch: &SendBatch) -> Vec<u8> {
        batch.iter().map(|m| m.data[0]).collect()
    }

    const SIZES: [(u8, usize, Option<u16>); 3] = [(0, 25, Some(10)), (0, 10, None), (0, 25, Some(10))];

    #[test]
    fn refused_segmentation_is_undone_and_stays_off() {
        for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
            let mut egress = Egress::new();
            let kernel = |datagrams, _: &[u8]| if datagrams > 1 { -errno } else { 10 };
            let (report, stats, tried) = send(&mut batch_of(&SIZES), &mut egress, kernel);
            assert_eq!((report.datagrams, report.errors, report.bytes), (7, 0, 60));
            assert_eq!(stats.gso_refused, 2);
            assert_eq!(tried, [3, 1, 3, 1, 1, 1, 1, 1, 1]);

            let (report, _, tried) = send(&mut batch_of(&SIZES), &mut egress, kernel);
            assert_eq!(report.datagrams, 7);
            assert_eq!(tried, [1; 7]);
        }
    }

    #[test]
    fn a_refusal_concerns_its_route_alone() {
        let mut egress = Egress::new();
        let (_, _, _) =
            send(&mut batch_of(&[(0, 20, Some(10))]), &mut egress, |d, _| if d > 1 { -libc::EIO } else { 10 });
        let mut batch = batch_of(&[(0, 20, Some(10)), (1, 20, Some(10))]);
        batch.push(SocketId(0), "192.0.2.1:9".parse().unwrap(), &[7; 20], Some(10));
        let (report, _, tried) = send(&mut batch, &mut egress, |_, _| 10);
        assert_eq!((report.datagrams, tried), (6, vec![1, 1, 2, 2]));
    }

    #[test]
    fn a_bad_address_does_not_switch_segmentation_off() {
        let mut egress = Egress::new();
        let (report, stats, _) = send(&mut batch_of(&[(0, 20, Some(10))]), &mut egress, |_, _| -libc::EINVAL);
        assert_eq!((report.errors, stats.gso_refused, stats.send_errors), (2, 0, 2));
        let (_, _, tried) = send(&mut batch_of(&[(0, 20, Some(10))]), &mut egress, |_, _| 20);
        assert_eq!(tried, [2]);
    }

    #[test]
    fn every_datagram_of_a_large_batch_is_accounted_once() {
        let messages: Vec<_> = (0..150).map(|i| (i % 2, 10, (i % 3 == 0).then_some(4))).collect();
        let mut batch = batch_of(&messages);
        let kernel = |d, _: &[u8]| if d > 1 { 10 } else { BLOCKED };
        let (report, _, tried) = send(&mut batch, &mut Egress::new(), kernel);
        assert_eq!((report.messages, report.datagrams, report.kept, report.would_block), (50, 150, 32, 68));
        assert_eq!((report.errors, batch.len()), (0, 32));
        // Each of the 100 that were refused has been tried twice.
        assert_eq!(tried.len(), 250);
    }

    #[test]
    fn a_full_socket_drops_video_and_tries_the_rest_again() {
        use Class::{Audio, Control, Video};
        let mut batch = classes(&[Video, Audio, Video, Control, Video]);
        let mut room = 1;
        // Room for one, then for none; once three have been refused there is room again.
        let mut refused = 0;
        let (report, stats, _) = send(&mut batch, &mut Egress::new(), |_, _| {
            if room > 0 || refused >= 4 {
                room = 0;
                return 1;
            }
            refused += 1;
            BLOCKED
        });
        assert_eq!((report.datagrams, report.would_block, report.kept), (3, 2, 0));
        assert_eq!(stats.full_dropped, [2, 0, 0]);
        assert_eq!((owners(&batch), batch.is_empty()), (vec![2, 4], true));
    }

    #[test]
    fn video_is_not_even_tried_after_the_socket_was_full() {
        let mut batch = classes(&[Class::Video; 150]);
        let (report, _, tried) = send(&mut batch, &mut Egress::new(), |_, _| -libc::ENOBUFS);
        assert_eq!((report.would_block, tried.len()), (150, MESSAGES));
        assert_eq!(owners(&batch), (0..150).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_full_socket_puts_off_goes_first_next_time_and_is_dropped_the_second_time() {
        use Class::{Audio, Control, Video};
        let mut egress = Egress::new();
        let mut batch = classes(&[Audio, Video, Control]);
        let (report, stats, _) = send(&mut batch, &mut egress, |_, _| BLOCKED);
        assert_eq!((report.would_block, report.kept, stats.full_kept), (1, 2, 2));
        assert_eq!((data(&batch), owners(&batch)), (vec![2, 0], vec![1]));

        add(&mut batch, Audio);
        let mut order = Vec::new();
        let (report, stats, _) = send(&mut batch, &mut egress, |_, data| {
            order.push(data[0]);
            BLOCKED
        });
        assert_eq!(order, [2, 0, 2, 2, 0, 2], "each twice; the new one is the third of the batch");
        assert_eq!((report.would_block, report.kept), (2, 1));
        assert_eq!(stats.full_dropped, [0, 1, 1]);
        assert_eq!(owners(&batch), [2, 0]);
    }

    #[test]
    fn audio_gives_way_to_control_when_too_much_is_put_off() {
        use Class::{Audio, Control};
        let max = limits::KEPT_MESSAGES_MAX;
        let mut batch = classes(&vec![Audio; max]);
        (0..max - 1).for_each(|_| add(&mut batch, Control));
        let (report, stats, _) = send(&mut batch, &mut Egress::new(), |_, _| BLOCKED);
        assert_eq!((report.kept, report.would_block), (max as u64, max as u64 - 1));
        assert_eq!(stats.full_dropped, [0, max as u64 - 1, 0]);
        let audio = batch.iter().filter(|m| m.label.class == Audio).count();
        assert_eq!((audio, batch.len()), (1, max));
    }

    #[test]
    fn what_cannot_be_sent_to_one_does_not_stop_the_others() {
        let mut batch = batch_of(&[(0, 1, None), (0, 2, None), (0, 20, Some(10)), (0, 1, None)]);
        let (report, _, _) = send(&mut batch, &mut Egress::new(), |_, data| match data.len() {
            2 => -libc::ENETUNREACH,
            20 => -libc::EPERM,
            _ => 1,
        });
        assert_eq!((report.datagrams, report.errors, report.kept), (2, 3, 0));
    }
}
