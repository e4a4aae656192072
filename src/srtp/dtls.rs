//! Our DTLS provider for str0m: dimpl with one configuration for all sessions of a role, RSA clients, and word of what
//! was negotiated.
//!
//! str0m's own provider builds a `dimpl::Config` for every `Rtc`, and with it runs a self-test of all ciphers: about
//! 1.1 ms a join, against 0.02 ms with the configuration kept (median of 100 on 2 vCPUs of a Xeon).
//!
//! dimpl's DTLS 1.2 server takes the first SRTP profile of its own order that the client offers: AEAD_AES_256_GCM,
//! AEAD_AES_128_GCM, then AES128_CM_SHA1_80. Its 1.3 server follows the client, and browsers put the slow
//! AES128_CM_SHA1_80 first. So a session stays on DTLS 1.2, str0m's default, and answers as DTLS server.

mod rsa;

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use str0m_proto::crypto::dtls::{DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider};
pub use str0m_proto::crypto::dtls::{ProtocolVersion, SrtpProfile};
use str0m_proto::crypto::{CryptoError, CryptoProvider, DtlsVersion};
use zeroize::Zeroizing;

use super::keys::{KeyError, MasterKeys};

/// Datagrams of a handshake are at most this long: str0m's own target for all that it sends. It cannot differ between
/// sessions, since they share one configuration.
const MTU_BYTES: usize = str0m::DATAGRAM_MTU_TARGET;

/// Wait before a flight is sent again, doubled each time. RFC 6347 §4.2.4.1 says 1 s unless more is known: ICE has just
/// seen the path work, and few viewers are farther than 200 ms away. A lost flight then costs 0.2 s of black, not 1 s.
const FLIGHT_RTO: Duration = Duration::from_millis(200);

/// 0.2 s × (2⁸ − 1) = 51 s: the handshake's own limit of 40 s is reached first. More than dimpl's 4, because a
/// ClientHello that comes again draws on it too, and libwebrtc repeats its own after 50 ms.
const FLIGHT_RETRIES: usize = 7;

/// Certificate and private key that all sessions of a process show: self-signed, ECDSA P-256.
///
/// Peers know it by the fingerprint in our SDP, so one serves all, and saves 7–25 µs a join.
#[derive(Clone)]
pub struct Certificate(DtlsCert);

/// A key pair or its certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("no DTLS certificate: {0}")]
pub struct CertificateError(#[source] dimpl::certificate::CertificateError);

impl Certificate {
    /// Makes a new one, valid for a year from now. Asks the operating system for time and randomness: at start-up only.
    ///
    /// # Errors
    ///
    /// When the operating system has no randomness.
    pub fn generate() -> Result<Certificate, CertificateError> {
        dimpl::certificate::generate_self_signed_certificate().map(Certificate).map_err(CertificateError)
    }

    /// For `RtcConfig::set_dtls_cert`.
    pub fn to_str0m(&self) -> DtlsCert {
        self.0.clone()
    }

    /// SHA-256 as `a=fingerprint:sha-256` writes it: `AF:12:…`.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint_str()
    }
}

/// Never the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.fingerprint()).finish()
    }
}

/// What `RtcConfig::set_crypto_provider` takes: aws-lc-rs throughout, DTLS by this file. One per process is enough.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static DTLS: SharedConfigDtls = SharedConfigDtls::new(None);
    Arc::new(CryptoProvider { dtls_provider: &DTLS, ..str0m_aws_lc_rs::default_provider() })
}

/// The same with DTLS that draws its randomness, jitter of retransmissions included, from a fixed seed.
///
/// For the simulator alone: nothing that it encrypts is secret.
pub fn simulated_crypto_provider() -> Arc<CryptoProvider> {
    static DTLS: SharedConfigDtls = SharedConfigDtls::new(Some(1));
    Arc::new(CryptoProvider { dtls_provider: &DTLS, ..str0m_aws_lc_rs::default_provider() })
}

/// Learns what the session that `build` makes will negotiate.
///
/// str0m makes its DTLS instance inside `RtcConfig::build`, with no place for an argument of ours. So the instance
/// finds the handle in a thread-local that is set only while `build` runs:
///
/// ```text
/// observe ──> BUILDING ──> build() ──> RtcConfig::build ──> new_dtls takes the handle out of BUILDING
///    └────────────────────────> Observed <── poll_output, when the keying material passes
/// ```
///
/// The handle belongs to the first DTLS instance of [`crypto_provider`] that `build` makes on this thread. Without any
/// it stays empty.
pub fn observe<T>(build: impl FnOnce() -> T) -> (T, Observed) {
    let observed = Observed::default();
    (watch(Watch { observed: observed.clone(), keys: Keys::Left, diverted: false }, build), observed)
}

/// [`observe`], to try our ciphers against str0m's: a copy of the keying material lands in the slot, str0m uses it too.
#[cfg(test)]
pub fn capture<T>(build: impl FnOnce() -> T) -> (T, Observed, KeySlot) {
    let observed = Observed::default();
    let slot = KeySlot(Arc::default());
    let keys = Keys::Copied(Arc::clone(&slot.0));
    (watch(Watch { observed: observed.clone(), keys, diverted: false }, build), observed, slot)
}

/// [`observe`], for a session whose media is none of str0m's business: the keying material lands in the slot and nowhere
/// else. Without keys str0m cannot send RTP or RTCP, needs no cipher contexts (8.8 kB), and `Rtc::is_connected()` stays
/// false: `Event::Connected` tells instead.
pub fn divert<T>(build: impl FnOnce() -> T) -> (T, Observed, KeySlot) {
    let observed = Observed::default();
    let slot = KeySlot(Arc::default());
    let keys = Keys::Diverted(Arc::clone(&slot.0));
    (watch(Watch { observed: observed.clone(), keys, diverted: false }, build), observed, slot)
}

fn watch<T>(watch: Watch, build: impl FnOnce() -> T) -> T {
    let _restore = Restore(BUILDING.replace(Some(watch)));
    build()
}

/// What one session's handshake led to; empty until then. Cheap to clone, to read and to send to another thread.
#[derive(Clone, Debug, Default)]
pub struct Observed(Arc<OnceLock<Negotiated>>);

#[derive(Clone, Copy, Debug)]
struct Negotiated {
    version: Option<ProtocolVersion>,
    profile: SrtpProfile,
}

impl Observed {
    /// How media is encrypted.
    pub fn profile(&self) -> Option<SrtpProfile> {
        self.0.get().map(|n| n.profile)
    }

    pub fn version(&self) -> Option<ProtocolVersion> {
        self.0.get().and_then(|n| n.version)
    }
}

/// Where one session's keying material lands when its handshake is done.
///
/// Whoever takes them here sends all RTP and RTCP of the session: str0m does not learn them.
#[derive(Debug, Default)]
pub struct KeySlot(Arc<Mutex<Option<CapturedKeys>>>);

impl KeySlot {
    /// The keys, once. str0m may tell that it is connected before DTLS hands them out, so this is asked after each
    /// draining of `poll_output` until it has answered.
    ///
    /// They may be used only when `Rtc::is_connected()` or after `Event::Connected`, which is when the certificate's fingerprint has been compared
    /// with the one in the peer's SDP. That is for the session to check: nothing here knows.
    pub fn take_keys(&self) -> Option<CapturedKeys> {
        lock(&self.0).take()
    }
}

/// What DTLS exported for SRTP (RFC 5764 §4.2). Wiped on drop, never printed.
pub struct CapturedKeys {
    profile: SrtpProfile,
    material: Zeroizing<Box<[u8]>>,
    active: bool,
}

impl CapturedKeys {
    pub fn profile(&self) -> SrtpProfile {
        self.profile
    }

    /// We were the DTLS client.
    pub fn active(&self) -> bool {
        self.active
    }

    /// # Errors
    ///
    /// When the profile is one that we cannot seal.
    pub fn master_keys(&self) -> Result<MasterKeys<'_>, KeyError> {
        MasterKeys::split(&self.material, self.profile, self.active)
    }
}

/// Never the key.
impl fmt::Debug for CapturedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedKeys")
            .field("profile", &self.profile)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

/// The lock is for str0m, which wants its DTLS to be `Sync`; no two threads ever meet here.
fn lock(keys: &Mutex<Option<CapturedKeys>>) -> std::sync::MutexGuard<'_, Option<CapturedKeys>> {
    keys.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static BUILDING: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// What a DTLS instance tells its session.
struct Watch {
    observed: Observed,
    keys: Keys,
    /// The first handshake's keys have gone to the slot.
    diverted: bool,
}

/// Where keying material goes.
enum Keys {
    /// To str0m.
    Left,
    /// To str0m and here.
    #[cfg(test)]
    Copied(Arc<Mutex<Option<CapturedKeys>>>),
    /// Only here.
    Diverted(Arc<Mutex<Option<CapturedKeys>>>),
}

/// Puts back what an outer `observe` had set, also when `build` panics: a later session must not find this handle.
struct Restore(Option<Watch>);

impl Drop for Restore {
    fn drop(&mut self) {
        BUILDING.set(self.0.take());
    }
}

struct SharedConfigDtls {
    /// Both made at the first session.
    server: OnceLock<Arc<dimpl::Config>>,
    client: OnceLock<Arc<dimpl::Config>>,
    seed: Option<u64>,
}

impl SharedConfigDtls {
    const fn new(seed: Option<u64>) -> SharedConfigDtls {
        SharedConfigDtls { server: OnceLock::new(), client: OnceLock::new(), seed }
    }
}

impl fmt::Debug for SharedConfigDtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedConfigDtls")
    }
}

impl DtlsProvider for SharedConfigDtls {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        Certificate::generate().ok().map(|c| c.0)
    }

    fn new_dtls(
        &self,
        cert: &DtlsCert,
        now: Instant,
        dtls_version: DtlsVersion,
        // Ours is fixed: see `MTU_BYTES`.
        _mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        if dtls_version != DtlsVersion::Dtls12 {
            return Err(CryptoError::Other(format!("no {dtls_version} here, 1.2 alone")));
        }
        let dtls = dimpl::Dtls::new_12(self.server()?, cert.clone(), now);
        let client = Some(Client { config: self.client()?, certificate: cert.clone(), now });
        Ok(Box::new(ObservedDtls { dtls, client, watch: BUILDING.take(), failed: false }))
    }
}

impl SharedConfigDtls {
    fn server(&self) -> Result<Arc<dimpl::Config>, CryptoError> {
        self.config(&self.server, rsa::crypto_provider)
    }

    fn client(&self) -> Result<Arc<dimpl::Config>, CryptoError> {
        self.config(&self.client, str0m_aws_lc_rs::dimpl_crypto_provider)
    }

    fn config(
        &self,
        kept: &OnceLock<Arc<dimpl::Config>>,
        crypto: fn() -> dimpl::crypto::CryptoProvider,
    ) -> Result<Arc<dimpl::Config>, CryptoError> {
        if let Some(config) = kept.get() {
            return Ok(config.clone());
        }
        let mut builder = dimpl::Config::builder()
            .with_crypto_provider(crypto())
            // Only 4-tuples that ICE has verified reach DTLS, which is what a cookie would prove.
            .use_server_cookie(false)
            .mtu(MTU_BYTES)
            .max_queue_rx(rsa::QUEUED_DATAGRAMS_MAX)
            .flight_start_rto(FLIGHT_RTO)
            .flight_retries(FLIGHT_RETRIES);
        if let Some(seed) = self.seed {
            builder = builder.dangerously_set_rng_seed(seed);
        }
        let config = builder.build().map_err(|e| CryptoError::Other(format!("DTLS configuration: {e}")))?;
        // Two threads may get here at once; they agree on the one that comes first.
        Ok(kept.get_or_init(|| Arc::new(config)).clone())
    }
}

/// A dimpl endpoint that tells its handles when keying material passes by, on its way to str0m.
struct ObservedDtls {
    /// A server, unless told otherwise.
    dtls: dimpl::Dtls,
    /// Until the role is known.
    client: Option<Client>,
    watch: Option<Watch>,
    /// An output did not fit. Were it the certificate, whoever went on would be connected to nobody knows whom.
    failed: bool,
}

/// What the DTLS client is made from, should we be that. It is no server turned around: see [`rsa`].
struct Client {
    config: Arc<dimpl::Config>,
    certificate: DtlsCert,
    now: Instant,
}

impl fmt::Debug for ObservedDtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtls.fmt(f)
    }
}

impl DtlsInstance for ObservedDtls {
    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        if self.failed {
            return DtlsOutput::BufferTooSmall { needed: usize::MAX };
        }
        let output = rsa::poll_output(&mut self.dtls, buf);
        self.failed = matches!(output, DtlsOutput::BufferTooSmall { .. });
        if let DtlsOutput::KeyingMaterial(material, profile) = &output
            && let Some(watch) = &mut self.watch
        {
            let version = self.dtls.protocol_version();
            // One handshake a session: were there a second, the first stays.
            let _ = watch.observed.0.set(Negotiated { version, profile: *profile });
            let captured = || {
                let material = Zeroizing::new(Box::from(&material[..]));
                Some(CapturedKeys { profile: *profile, material, active: self.dtls.is_active() })
            };
            match &watch.keys {
                Keys::Left => {}
                #[cfg(test)]
                Keys::Copied(slot) => {
                    *lock(slot) = captured();
                    watch.keys = Keys::Left;
                }
                // Once more what is said only once: str0m takes no notice of the second time. A second handshake's keys
                // stay away from it too.
                Keys::Diverted(slot) => {
                    let mut slot = lock(slot);
                    if !watch.diverted {
                        *slot = captured();
                        watch.diverted = true;
                    }
                    return DtlsOutput::Connected;
                }
            }
        }
        output
    }

    fn set_active(&mut self, active: bool) {
        let client = self.client.take();
        if active && let Some(Client { config, certificate, now }) = client {
            self.dtls = dimpl::Dtls::new_12(config, certificate, now);
        }
        self.dtls.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.dtls.handle_packet(packet)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.dtls.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.dtls.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.dtls.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.dtls.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.dtls.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.dtls.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.dtls.close()
    }
}

#[cfg(test)]
pub(super) use tests::{Packets, Peer, negotiate, shake_hands, start};

#[cfg(test)]
mod tests;
