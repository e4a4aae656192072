//! The floor under a forwarded packet on this machine: a program that does nothing but receive, copy, seal and send.
//!
//! One thread takes bursts of RTP-like datagrams from a socket and for each of N viewers copies them behind a fresh
//! header, seals them with the viewer's own key and sends them as segments of one message (UDP_SEGMENT), 64 messages
//! to a `sendmmsg`. It knows how long a burst is and waits for the whole of it. No ICE, no DTLS, no RTCP, no NACK, no
//! numbering, no timers, one profile. Another thread sends the bursts, and a third one reads what the viewers get as the
//! load tester does, in epoll.
//!
//! CPU is CLOCK_THREAD_CPUTIME_ID of the forwarding thread.

#![expect(unsafe_code, reason = "the barest way: system calls without anything of ours around them")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::mem;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use manycast::io::many::{self, Many};
use manycast::srtp::keys::{MasterKey, Profile};
use manycast::srtp::seal::RtpSealer;

const HEADER_BYTES: usize = 12;
const MESSAGES: usize = 64;
const TAIL_BYTES_MIN: usize = 64;

/// What is forwarded to how many.
pub struct Options {
    pub viewers: usize,
    /// Packets a second.
    pub rate: u64,
    pub burst: usize,
    pub seconds: u64,
    pub payload_bytes: usize,
    /// The last packet of a burst is anything from 64 bytes to full, as `--packet-sizes tail` has it.
    pub short_tails: bool,
    /// UDP_GRO at the receivers.
    pub gro: bool,
    pub profile: Profile,
}

/// CPU of the forwarding thread by packets forwarded, in µs.
pub fn cpu_us(options: &Options) -> f64 {
    let (cpu, forwarded, got) = run(options);
    let lost = 100.0 * forwarded.saturating_sub(got) as f64 / forwarded as f64;
    if lost > 1.0 {
        eprintln!("the reference lost {lost:.1} %");
    }
    cpu.as_secs_f64() * 1e6 / forwarded as f64
}

/// CPU of the forwarding thread, packets forwarded, packets that arrived.
fn run(options: &Options) -> (Duration, u64, u64) {
    let input = UdpSocket::bind("127.0.0.1:0").expect("a port");
    input.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let output = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket2::SockRef::from(&output).set_send_buffer_size(4 << 20).expect("a buffer");
    let buffers = many::Options { gro: options.gro, receive_bytes: 512 * 1024 };
    let mut sinks = Many::bind(Ipv4Addr::LOCALHOST.into(), options.viewers, buffers).expect("ports");
    let destinations: Vec<libc::sockaddr_in> = sinks.locals().iter().map(address).collect();
    let target = input.local_addr().expect("bound");
    let (stop, got) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(1);
            drain(&mut sinks, &stop, &got);
        });
        let source = scope.spawn(|| {
            stay_on(1);
            send_bursts(target, options);
        });
        let forwarder = scope.spawn(|| {
            stay_on(0);
            forward(&input, &output, &destinations, options)
        });
        let (cpu, forwarded) = forwarder.join().expect("the forwarder");
        source.join().expect("the source");
        // What is still in the sinks' queues.
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        (cpu, forwarded, got.load(Ordering::Relaxed))
    })
}

/// As the server with one shard and the load tester.
fn stay_on(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

fn address(of: &SocketAddr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: of.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    }
}

/// `rate` packets a second, `burst` at a time, one by one as publishers send them.
fn send_bursts(target: SocketAddr, options: &Options) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let packet = vec![0x80u8; HEADER_BYTES + options.payload_bytes];
    let mut sizes = fastrand::Rng::with_seed(0);
    let start = Instant::now();
    for burst in 0..options.rate * options.seconds / options.burst as u64 {
        let due = Duration::from_nanos(1_000_000_000 / options.rate * burst * options.burst as u64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        for _ in 1..options.burst {
            socket.send_to(&packet, target).expect("sent");
        }
        let full = options.payload_bytes;
        let tail_bytes = if options.short_tails { sizes.usize(TAIL_BYTES_MIN..=full) } else { full };
        socket.send_to(&packet[..HEADER_BYTES + tail_bytes], target).expect("sent");
    }
}

/// Reads what has come, as the load tester does: who sends pays for waking it.
fn drain(sinks: &mut Many, stop: &AtomicBool, got: &AtomicU64) {
    let mut ready = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        sinks.wait(Duration::from_millis(50), &mut ready).expect("epoll");
        for socket in ready.drain(..) {
            got.fetch_add(sinks.receive(socket, |_, _| {}) as u64, Ordering::Relaxed);
        }
    }
}

/// The thread that is measured.
fn forward(
    input: &UdpSocket,
    output: &UdpSocket,
    destinations: &[libc::sockaddr_in],
    options: &Options,
) -> (Duration, u64) {
    let sealers: Vec<RtpSealer> = (0..destinations.len()).map(|i| sealer(options.profile, i)).collect();
    let segment = segment(options);
    // As many messages as stay in the L2 cache, as the server has it.
    let messages_max = (100_000 / (segment * options.burst)).clamp(1, MESSAGES);
    let mut arena = vec![0u8; messages_max * options.burst * segment];
    let mut incoming = vec![[0u8; 2048]; options.burst];
    let mut sender = Sender::new(messages_max);
    let (mut seq, mut forwarded) = (0u64, 0u64);
    let expected = options.rate * options.seconds / options.burst as u64 * options.burst as u64;
    let start = cpu_time();
    while seq < expected {
        let (count, last_bytes) = receive(input, &mut incoming);
        if count == 0 {
            break;
        }
        for (chunk, group) in destinations.chunks(messages_max).enumerate() {
            for (i, destination) in group.iter().enumerate() {
                let message_bytes = (count - 1) * segment + last_bytes + options.profile.tag_bytes();
                let message = &mut arena[i * options.burst * segment..][..message_bytes];
                for (k, packet) in message.chunks_mut(segment).enumerate() {
                    let payload = HEADER_BYTES..packet.len() - options.profile.tag_bytes();
                    let number = seq + k as u64;
                    packet[..HEADER_BYTES].copy_from_slice(&[0x80, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                    packet[2..4].copy_from_slice(&(number as u16).to_be_bytes());
                    packet[payload.clone()].copy_from_slice(&incoming[k][payload]);
                    sealers[chunk * messages_max + i].seal_rtp(packet, HEADER_BYTES, 1, number);
                }
                sender.add(message, destination, (count > 1).then_some(segment as u16));
            }
            sender.flush(output);
            forwarded += (group.len() * count) as u64;
        }
        seq += count as u64;
    }
    (cpu_time() - start, forwarded)
}

/// Bytes of a sealed packet that is full.
fn segment(options: &Options) -> usize {
    HEADER_BYTES + options.payload_bytes + options.profile.tag_bytes()
}

fn sealer(profile: Profile, viewer: usize) -> RtpSealer {
    let (key_bytes, salt_bytes) = match profile {
        Profile::Aes128Gcm => (16, 12),
        Profile::Aes256Gcm => (32, 12),
        Profile::Aes128CmSha1 => (16, 14),
    };
    let key = vec![viewer as u8 ^ 0x5a; key_bytes];
    let salt = vec![viewer as u8; salt_bytes];
    RtpSealer::new(MasterKey::new(profile, &key, &salt).expect("the profile's lengths"))
}

/// Packets of one burst, or of what is there of it, and how long the last one is; 0 after the last burst.
fn receive(input: &UdpSocket, incoming: &mut [[u8; 2048]]) -> (usize, usize) {
    let (mut count, mut last_bytes) = (0, 0);
    while count < incoming.len()
        && let Ok(bytes) = input.recv(&mut incoming[count])
    {
        (count, last_bytes) = (count + 1, bytes);
    }
    (count, last_bytes)
}

/// Messages of one `sendmmsg`, set up once.
struct Sender {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
    used: usize,
}

/// One UDP_SEGMENT control message.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 32]);

impl Sender {
    fn new(messages: usize) -> Sender {
        Sender {
            // SAFETY: a zeroed mmsghdr is one without name, vectors and control data.
            headers: (0..messages).map(|_| unsafe { mem::zeroed() }).collect(),
            vectors: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; messages],
            controls: vec![Control([0; 32]); messages],
            used: 0,
        }
    }

    fn add(&mut self, message: &mut [u8], destination: &libc::sockaddr_in, segment: Option<u16>) {
        let i = self.used;
        self.vectors[i] = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
        let header = &mut self.headers[i].msg_hdr;
        header.msg_name = std::ptr::from_ref(destination).cast_mut().cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as u32;
        header.msg_iov = &mut self.vectors[i];
        header.msg_iovlen = 1;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
        if let Some(segment) = segment {
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            // SAFETY: 32 bytes, aligned to 8, hold the header and data of one control message of two bytes.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(2) as usize;
                let control = libc::CMSG_FIRSTHDR(header);
                (*control).cmsg_level = libc::SOL_UDP;
                (*control).cmsg_type = libc::UDP_SEGMENT;
                (*control).cmsg_len = libc::CMSG_LEN(2) as usize;
                libc::CMSG_DATA(control).cast::<u16>().write_unaligned(segment);
            }
        }
        self.used += 1;
    }

    fn flush(&mut self, output: &UdpSocket) {
        let mut sent = 0;
        while sent < self.used {
            // SAFETY: the first `used` headers were set by `add`; what they point to lives in the caller until here.
            let n = unsafe {
                libc::sendmmsg(
                    output.as_raw_fd(),
                    self.headers[sent..].as_mut_ptr(),
                    (self.used - sent) as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            sent += usize::try_from(n).unwrap_or(0).max(1);
        }
        self.used = 0;
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec for the kernel to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
