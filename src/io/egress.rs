//! The way out that both backends share: a batch becomes message headers, one run per socket, and each result is
//! accounted; segmentation that the kernel refuses is undone here.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::ptr;

use super::address::Name;
use super::{BackendStats, SendReport};
use crate::datagram::{Outgoing, SendBatch};
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

/// What a message was made of, and what became of it.
#[derive(Clone, Copy, Default)]
struct Account {
    /// Index in the batch.
    source: usize,
    bytes: usize,
    datagrams: u64,
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

    fn is_full(&self) -> bool {
        self.len == MESSAGES
    }

    fn push(&mut self, source: usize, message: Outgoing<'_>) {
        let i = self.len;
        let datagrams = segments(&message);
        self.accounts[i] = Account { source, bytes: message.data.len(), datagrams, result: 0 };
        self.iovecs[i] = libc::iovec { iov_base: message.data.as_ptr().cast_mut().cast(), iov_len: message.data.len() };
        let header = &mut self.headers[i].msg_hdr;
        header.msg_namelen = self.names[i].write(message.remote);
        header.msg_name = (&raw mut self.names[i]).cast();
        header.msg_iov = &raw mut self.iovecs[i];
        header.msg_iovlen = 1;
        match message.segment {
            Some(bytes) if datagrams > 1 => {
                self.controls[i].bytes = bytes;
                header.msg_control = (&raw mut self.controls[i]).cast();
                header.msg_controllen = size_of::<SegmentControl>() as _;
            }
            _ => {
                header.msg_control = ptr::null_mut();
                header.msg_controllen = 0;
            }
        }
        self.len += 1;
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

/// The prepared messages, and what has been learnt about segmentation here.
pub(super) struct Egress {
    messages: Messages,
    /// Whether UDP_SEGMENT works; once refused it stays off (no checksum offload: EIO; a tunnel or an old virtio:
    /// EINVAL).
    segmenting: bool,
    /// Batch indices of refused messages; a list that is reused.
    refused: Vec<usize>,
}

impl Egress {
    pub(super) fn new() -> Egress {
        Egress { messages: Messages::new(), segmenting: true, refused: Vec::new() }
    }

    /// Sends the batch, one run per socket; `transmit` tries each message of the list once, sets its result, and
    /// has let go of all of them when it returns.
    pub(super) fn send(
        &mut self,
        batch: &SendBatch,
        sockets: usize,
        stats: &mut BackendStats,
        transmit: &mut dyn FnMut(usize, &mut Messages),
    ) -> SendReport {
        let mut report = SendReport::default();
        // Pass by pass over at most 64 entries: cheaper than sorting, and there are rarely more than two sockets.
        for socket in 0..sockets {
            let run = (0..batch.len()).filter(|&i| usize::from(batch.get(i).socket.0) == socket);
            for source in run {
                let message = batch.get(source);
                if self.segmenting || segments(&message) == 1 {
                    self.messages.push(source, message);
                    if self.messages.is_full() {
                        self.flush(batch, socket, &mut report, stats, transmit);
                    }
                } else {
                    self.flush(batch, socket, &mut report, stats, transmit);
                    self.send_apart(batch, source, socket, &mut report, transmit);
                }
            }
            self.flush(batch, socket, &mut report, stats, transmit);
        }
        for message in batch.iter().filter(|m| usize::from(m.socket.0) >= sockets) {
            debug_assert!(false, "socket {} of {sockets}", message.socket.0);
            report.errors += segments(&message);
        }
        stats.send_would_block += report.would_block;
        stats.send_errors += report.errors;
        report
    }

    fn flush(
        &mut self,
        batch: &SendBatch,
        socket: usize,
        report: &mut SendReport,
        stats: &mut BackendStats,
        transmit: &mut dyn FnMut(usize, &mut Messages),
    ) {
        if self.messages.len() == 0 {
            return;
        }
        transmit(socket, &mut self.messages);
        self.refused.clear();
        for account in &self.messages.accounts[..self.messages.len] {
            if account.datagrams > 1 && refuses_segmentation(account.result) {
                self.refused.push(account.source);
            } else {
                report.add(account);
            }
        }
        self.messages.clear();
        for i in 0..self.refused.len() {
            let sent_before = report.datagrams;
            self.send_apart(batch, self.refused[i], socket, report, transmit);
            // The same bytes pass as singles, so it was the segmentation; a bad address fails both ways.
            if report.datagrams > sent_before {
                self.segmenting = false;
                stats.gso_refused += 1;
            }
        }
    }

    /// Sends message `source` as single datagrams. The list is empty before and after.
    fn send_apart(
        &mut self,
        batch: &SendBatch,
        source: usize,
        socket: usize,
        report: &mut SendReport,
        transmit: &mut dyn FnMut(usize, &mut Messages),
    ) {
        let message = batch.get(source);
        let mut pieces = message.data.chunks(message.segment.map_or(usize::MAX, usize::from).max(1)).peekable();
        while let Some(data) = pieces.next() {
            self.messages.push(source, Outgoing { data, segment: None, ..message });
            if self.messages.is_full() || pieces.peek().is_none() {
                transmit(socket, &mut self.messages);
                self.messages.accounts[..self.messages.len].iter().for_each(|account| report.add(account));
                self.messages.clear();
            }
        }
    }
}

impl SendReport {
    fn add(&mut self, account: &Account) {
        match account.result {
            result if result >= 0 => {
                self.messages += 1;
                self.datagrams += account.datagrams;
                self.bytes += account.bytes as u64;
            }
            result if result == -libc::EAGAIN => self.would_block += account.datagrams,
            _ => self.errors += account.datagrams,
        }
    }
}

/// Sends the list by `sendmmsg`. The call stops at the first message that fails; that one is noted and the rest gets
/// its own try: 64 times 400 ns at worst, and the buffer may drain meanwhile.
pub(super) fn sendmmsg(socket: &UdpSocket, messages: &mut Messages) {
    let mut next = 0;
    while next < messages.len {
        let rest = &mut messages.headers[next..messages.len];
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
                    messages.set_result(next, -errno.unwrap_or(libc::EIO));
                    next += 1;
                }
            },
        }
    }
}

/// Datagrams that a message holds.
fn segments(message: &Outgoing<'_>) -> u64 {
    match message.segment {
        Some(bytes) if bytes > 0 => message.data.len().div_ceil(usize::from(bytes)).max(1) as u64,
        _ => 1,
    }
}

/// Seen in the wild when a device or a kernel cannot segment (quinn #1128, #2399; quic-go #3911).
fn refuses_segmentation(result: i32) -> bool {
    matches!(-result, libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::datagram::SocketId;

    const REMOTE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9));

    /// Runs a batch through an `Egress` whose kernel answers by `result(datagrams of the message)`; returns the report
    /// and the datagram counts of the messages that were tried, in order.
    fn send(
        batch: &SendBatch,
        egress: &mut Egress,
        result: impl Fn(u64) -> i32,
    ) -> (SendReport, BackendStats, Vec<u64>) {
        let mut stats = BackendStats::default();
        let mut tried = Vec::new();
        let report = egress.send(batch, 2, &mut stats, &mut |_, messages| {
            for i in 0..messages.len() {
                let datagrams = messages.accounts[i].datagrams;
                tried.push(datagrams);
                messages.set_result(i, result(datagrams));
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

    #[test]
    fn refused_segmentation_is_undone_and_stays_off() {
        let batch = batch_of(&[(0, 25, Some(10)), (0, 10, None), (0, 25, Some(10))]);
        let mut egress = Egress::new();
        let kernel = |datagrams| if datagrams > 1 { -libc::EIO } else { 10 };
        let (report, stats, tried) = send(&batch, &mut egress, kernel);
        assert_eq!((report.datagrams, report.errors, report.bytes), (7, 0, 60));
        assert_eq!(stats.gso_refused, 2);
        assert_eq!(tried, [3, 1, 3, 1, 1, 1, 1, 1, 1]);

        let (report, _, tried) = send(&batch, &mut egress, kernel);
        assert_eq!(report.datagrams, 7);
        assert_eq!(tried, [1; 7]);
    }

    #[test]
    fn a_bad_address_does_not_switch_segmentation_off() {
        let batch = batch_of(&[(0, 20, Some(10))]);
        let mut egress = Egress::new();
        let (report, stats, _) = send(&batch, &mut egress, |_| -libc::EINVAL);
        assert_eq!((report.errors, stats.gso_refused, stats.send_errors), (2, 0, 2));
        let (_, _, tried) = send(&batch, &mut egress, |_| 20);
        assert_eq!(tried, [2]);
    }

    #[test]
    fn every_datagram_of_a_large_batch_is_accounted_once() {
        let messages: Vec<_> = (0..150).map(|i| (i % 2, 10, (i % 3 == 0).then_some(4))).collect();
        let batch = batch_of(&messages);
        let (report, _, tried) = send(&batch, &mut Egress::new(), |d| if d > 1 { 10 } else { -libc::EAGAIN });
        assert_eq!((report.messages, report.datagrams, report.would_block, report.errors), (50, 150, 100, 0));
        assert_eq!(tried.len(), 150);
    }
}
