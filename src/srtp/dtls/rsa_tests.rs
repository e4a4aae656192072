//! Whole handshakes with clients that show RSA certificates, in memory; and what happens to others on the way.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use dimpl::crypto::{KeyProvider, SigningKey};
use proptest::collection::vec;
use proptest::prelude::*;
use str0m_proto::crypto::DtlsVersion;
use str0m_proto::crypto::dtls::{DtlsCert, DtlsImplError, DtlsInstance, DtlsProvider};

use super::super::{FLIGHT_RETRIES, MTU_BYTES, ObservedDtls, SharedConfigDtls, start};
use super::*;

const CERTIFICATE_VERIFY: u8 = 15;
const ALERT: u8 = 21;

static OURS: SharedConfigDtls = SharedConfigDtls::new(None);
static RSA: LazyLock<DtlsCert> = LazyLock::new(rsa_certificate);

fn rsa_certificate() -> DtlsCert {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    DtlsCert { certificate: certificate.der().to_vec(), private_key: key.serialize_der() }
}

fn ecdsa_certificate() -> DtlsCert {
    OURS.generate_certificate().unwrap()
}

/// dimpl has no RSA client. This one signs with RSA where dimpl thinks it is ECDSA, and says so afterwards: in the
/// CertificateVerify on the wire and in that of the transcript.
fn rsa_client(certificate: DtlsCert) -> Side {
    let crypto = CryptoProvider {
        key_provider: &RsaKeys,
        hash_provider: &ClientHashes,
        ..str0m_aws_lc_rs::dimpl_crypto_provider()
    };
    // So large that its messages are whole.
    let config = dimpl::Config::builder().with_crypto_provider(crypto).mtu(4000).build().unwrap();
    let dtls = dimpl::Dtls::new_12(Arc::new(config), certificate, start());
    let side = Side::new(Box::new(ObservedDtls { dtls, client: None, watch: None, failed: false }), true);
    Side { sends: |datagram| rewritten(datagram, signed_with_rsa), ..side }
}

fn signed_with_rsa(messages: &[u8]) -> Cow<'_, [u8]> {
    let Some(found) = find(messages, CERTIFICATE_VERIFY) else {
        return messages.into();
    };
    let mut messages = messages.to_vec();
    messages[found.start + MESSAGE_HEADER_BYTES + 1] = SignatureAlgorithm::RSA.as_u8();
    messages.into()
}

#[derive(Debug)]
struct ClientHashes;

impl HashProvider for ClientHashes {
    fn create_hash(&self, algorithm: HashAlgorithm) -> Box<dyn HashContext> {
        Box::new(ClientHash(str0m_aws_lc_rs::dimpl_crypto_provider().hash_provider.create_hash(algorithm)))
    }
}

#[derive(Debug)]
struct ClientHash(Box<dyn HashContext>);

impl HashContext for ClientHash {
    fn update(&mut self, transcript: &[u8]) {
        self.0.update(&signed_with_rsa(transcript));
    }

    fn clone_and_finalize(&self, out: &mut Buf) {
        self.0.clone_and_finalize(out);
    }
}

#[derive(Debug)]
struct RsaKeys;

impl KeyProvider for RsaKeys {
    fn load_private_key(&self, der: &[u8]) -> Result<Box<dyn SigningKey>, CryptoError> {
        Ok(Box::new(RsaKey(RsaKeyPair::from_pkcs8(der).unwrap())))
    }
}

#[derive(Debug)]
struct RsaKey(RsaKeyPair);

impl SigningKey for RsaKey {
    fn sign(&mut self, data: &[u8], _: HashAlgorithm, out: &mut Buf) -> Result<(), CryptoError> {
        out.resize(self.0.public_modulus_len(), 0);
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), data, out).unwrap();
        Ok(())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }

    fn supported_hash_algorithms(&self) -> &[HashAlgorithm] {
        &[HashAlgorithm::SHA256]
    }
}

/// One end of a handshake.
struct Side {
    dtls: Box<dyn DtlsInstance>,
    sends: fn(&[u8]) -> Cow<'_, [u8]>,
    said: Vec<Said>,
    due: Instant,
}

#[derive(Debug, PartialEq)]
enum Said {
    Certificate(Vec<u8>),
    Connected,
    Keys(Vec<u8>),
    Closed,
}

/// str0m's own, of which nothing of ours is part.
fn stock(certificate: &DtlsCert, active: bool) -> Side {
    let provider = str0m_aws_lc_rs::default_provider().dtls_provider;
    Side::new(provider.new_dtls(certificate, start(), DtlsVersion::Dtls12, None).unwrap(), active)
}

fn ours(active: bool) -> Side {
    Side::new(OURS.new_dtls(&ecdsa_certificate(), start(), DtlsVersion::Dtls12, None).unwrap(), active)
}

impl Side {
    fn new(mut dtls: Box<dyn DtlsInstance>, active: bool) -> Side {
        dtls.set_active(active);
        Side { dtls, sends: |datagram| datagram.into(), said: Vec::new(), due: start() }
    }

    /// The datagrams that wait.
    fn poll(&mut self) -> Vec<Vec<u8>> {
        let mut buf = [0; 2000];
        let mut datagrams = Vec::new();
        loop {
            let said = match self.dtls.poll_output(&mut buf) {
                Output::Packet(datagram) => {
                    datagrams.push((self.sends)(datagram).into_owned());
                    continue;
                }
                Output::Timeout(at) => {
                    self.due = at;
                    return datagrams;
                }
                Output::PeerCert(certificate) => Said::Certificate(certificate.to_vec()),
                Output::Connected => Said::Connected,
                Output::KeyingMaterial(material, _) => Said::Keys(material.to_vec()),
                Output::CloseNotify => Said::Closed,
                other => panic!("{other:?}"),
            };
            self.said.push(said);
        }
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Vec<Vec<u8>>, DtlsImplError> {
        let result = self.dtls.handle_packet(datagram);
        let datagrams = self.poll();
        result.map(|()| datagrams)
    }

    fn wait_until(&mut self, now: Instant) -> Result<Vec<Vec<u8>>, DtlsImplError> {
        let result = self.dtls.handle_timeout(now);
        let datagrams = self.poll();
        result.map(|()| datagrams)
    }

    fn has_keys(&self) -> bool {
        matches!(self.said.last(), Some(Said::Keys(_)))
    }
}

/// Until both have keys. Returns what the server sent. Time stands still while datagrams are on their way, of which one,
/// counted from 0, may be lost.
fn shake_hands(client: &mut Side, server: &mut Side, lost: Option<usize>) -> Result<Vec<Vec<u8>>, DtlsImplError> {
    let mut now = start();
    let end = now + Duration::from_secs(10);
    let mut sent: Vec<(bool, Vec<u8>)> = Vec::new();
    let mut arrived = 0;
    while !(client.has_keys() && server.has_keys()) {
        if let Some((from_client, datagram)) = sent.get(arrived).cloned() {
            let to = if from_client { &mut *server } else { &mut *client };
            if lost != Some(arrived) {
                sent.extend(to.receive(&datagram)?.into_iter().map(|d| (!from_client, d)));
            }
            arrived += 1;
        } else {
            assert!(now < end, "not connected in 10 s of virtual time");
            sent.extend(client.wait_until(now)?.into_iter().map(|d| (true, d)));
            sent.extend(server.wait_until(now)?.into_iter().map(|d| (false, d)));
            now = now.max(client.due.min(server.due));
        }
    }
    Ok(sent.into_iter().filter(|(from_client, _)| !from_client).map(|(_, datagram)| datagram).collect())
}

#[test]
fn a_client_with_an_rsa_certificate_is_connected() {
    let (mut client, mut server) = (rsa_client(RSA.clone()), ours(false));
    let sent = shake_hands(&mut client, &mut server, None).unwrap();
    let [Said::Certificate(shown), Said::Connected, Said::Keys(keys)] = &server.said[..] else {
        panic!("the certificate before the keys: {:?}", server.said);
    };
    assert_eq!(*shown, RSA.certificate);
    assert_eq!(client.said.last(), Some(&Said::Keys(keys.clone())));
    let flight = &sent[0];
    assert!(flight.windows(REQUEST.len()).any(|w| w == REQUEST), "{flight:?}");
    assert!(flight.len() < MTU_BYTES - 100, "{} bytes: the request must be whole", flight.len());
}

#[test]
fn a_client_with_an_ecdsa_certificate_still_is() {
    shake_hands(&mut stock(&ecdsa_certificate(), true), &mut ours(false), None).unwrap();
}

/// Each of the four flights once; the second is sent anew with our request in it.
#[test]
fn a_lost_flight_is_sent_again() {
    for lost in 0..4 {
        let (mut client, mut server) = (rsa_client(RSA.clone()), ours(false));
        let sent = shake_hands(&mut client, &mut server, Some(lost)).unwrap();
        let requests = sent.iter().filter(|d| d.windows(REQUEST.len()).any(|w| w == REQUEST)).count();
        assert!(requests >= if lost == 1 { 2 } else { 1 }, "{requests} requests, {lost} lost");
    }
}

/// The request of a server that is dimpl's alone must be hashed as it came.
#[test]
fn a_session_that_is_the_client_leaves_the_servers_request_alone() {
    shake_hands(&mut ours(true), &mut stock(&ecdsa_certificate(), false), None).unwrap();
}

#[test]
fn only_dtls_1_2_is_served() {
    for version in [DtlsVersion::Dtls13, DtlsVersion::Auto] {
        assert!(OURS.new_dtls(&RSA, start(), version, None).is_err());
    }
}

#[test]
fn who_cannot_sign_for_the_certificate_is_refused() {
    let stolen = DtlsCert { certificate: RSA.certificate.clone(), ..rsa_certificate() };
    let (mut client, mut server) = (rsa_client(stolen), ours(false));
    let error = shake_hands(&mut client, &mut server, None).unwrap_err();
    assert!(error.to_string().contains("signature"), "{error}");
    assert_eq!(server.said, [Said::Certificate(RSA.certificate.clone())]);
}

/// And a certificate of another kind than the signature.
#[test]
fn only_rsa_keys_verify_rsa_signatures() {
    let key = RsaKeyPair::from_pkcs8(&RSA.private_key).unwrap();
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), b"signed", &mut signature).unwrap();
    assert_eq!(verify_rsa(&RSA.certificate, b"signed", &signature), Ok(()));
    assert!(verify_rsa(&RSA.certificate, b"forged", &signature).is_err());
    assert!(verify_rsa(&ecdsa_certificate().certificate, b"signed", &signature).is_err());
    assert!(verify_rsa(&RSA.certificate[1..], b"signed", &signature).is_err());
    let by_sha384 = |certificate| {
        let algorithm = SignatureAlgorithm::RSA;
        Verifier.verify_signature(certificate, b"signed", &signature, HashAlgorithm::SHA384, algorithm)
    };
    assert_eq!(by_sha384(&RSA.certificate), Err(CryptoError::UnsupportedSignatureAlgorithm(SignatureAlgorithm::RSA)));
}

/// A record in the clear, with one message.
fn record(content_type: u8, number: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16).to_be_bytes();
    [&[content_type, 254, 253, 0, 0, 0, 0, 0, 0, 0, number], &length[..], content].concat()
}

fn message(message_type: u8, number: u8, body: &[u8]) -> Vec<u8> {
    let length = &(body.len() as u32).to_be_bytes()[1..];
    [&[message_type], length, &[0, number, 0, 0, 0], length, body].concat()
}

/// A server that has sent its first flight, and its client.
fn half_way() -> (Side, Side) {
    let (mut client, mut server) = (rsa_client(RSA.clone()), ours(false));
    server.wait_until(start()).unwrap();
    for hello in client.wait_until(start()).unwrap() {
        for datagram in server.receive(&hello).unwrap() {
            client.dtls.handle_packet(&datagram).unwrap();
        }
    }
    (client, server)
}

#[test]
fn a_client_without_certificate_gets_an_alert() {
    let (_, mut server) = half_way();
    let no_certificate = message(11, 1, &[0, 0, 0]);
    let error = server.dtls.handle_packet(&record(HANDSHAKE, 1, &no_certificate)).unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let sent = server.poll();
    let [alert] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((alert[0], &alert[RECORD_HEADER_BYTES..]), (ALERT, &[2, 40][..]), "fatal: handshake_failure");
    assert_eq!(server.said, []);
}

#[test]
fn a_clients_fatal_alert_in_the_clear_does_not_end_a_handshake() {
    let (mut client, mut server) = half_way();
    let _ = server.receive(&record(ALERT, 1, &[2, 40]));
    for datagram in client.poll() {
        let _ = server.receive(&datagram);
    }
    assert!(server.has_keys(), "{:?}", server.said);
}

#[test]
fn fragments_beyond_the_bound_are_refused() {
    let (mut client, mut server) = half_way();
    let fragment = |number: u8| record(HANDSHAKE, number, &message(11, 2 + number, &[0; 1000]));
    let refused = (0..100).map(fragment).filter(|f| server.dtls.handle_packet(f).is_err()).count();
    assert_eq!(refused, 100 - QUEUED_DATAGRAMS_MAX);
    assert_eq!(server.poll(), Vec::<Vec<u8>>::new());
    drop(client.poll());
}

#[test]
fn an_unanswered_flight_is_sent_again_a_few_times() {
    let (_, mut server) = half_way();
    let mut again = 0;
    let error = loop {
        match server.wait_until(server.due) {
            Ok(sent) => again += sent.len(),
            Err(error) => break error,
        }
    };
    assert!(again <= FLIGHT_RETRIES, "{again} times");
    assert!(again >= 4, "{again} times");
    assert!(server.due <= start() + Duration::from_secs(60), "{error}");
}

#[test]
fn either_side_may_say_goodbye() {
    for server_first in [true, false] {
        let (mut client, mut server) = (rsa_client(RSA.clone()), ours(false));
        shake_hands(&mut client, &mut server, None).unwrap();
        let (first, second) = if server_first { (&mut server, &mut client) } else { (&mut client, &mut server) };
        first.dtls.close().unwrap();
        for datagram in first.poll() {
            second.receive(&datagram).unwrap();
        }
        assert_eq!(second.said.last(), Some(&Said::Closed));
    }
}

proptest! {
    #[test]
    fn only_a_certificate_request_is_rewritten(
        before in vec(message_of_any_type(), 0..3),
        theirs in vec(any::<u8>(), 0..20),
        after in vec(message_of_any_type(), 0..3),
        rest in vec(any::<u8>(), 0..11),
    ) {
        let (before, after) = (before.concat(), [after.concat(), rest].concat());
        let without = [&before[..], &after].concat();
        prop_assert_eq!(&*with_our_request(&without), &without);
        let [theirs, ours] = [&theirs[..], &REQUEST].map(|body| message(CERTIFICATE_REQUEST, 3, body));
        let [theirs, ours] = [theirs, ours].map(|request| [&before[..], &request, &after].concat());
        prop_assert_eq!(&*with_our_request(&theirs), &ours);
        let [theirs, ours] = [theirs, ours].map(|messages| [record(ALERT, 0, &[2, 40]), record(HANDSHAKE, 1, &messages)].concat());
        prop_assert_eq!(&*rewritten(&theirs, with_our_request), &ours);
    }

    #[test]
    fn what_is_not_whole_or_not_in_the_clear_stays_as_it_is(cut in 0..24usize, bits in 1u8..) {
        let whole = message(CERTIFICATE_REQUEST, 3, &[1; 12]);
        let [mut first, mut later] = [(); 2].map(|()| whole.clone());
        first[MESSAGE_HEADER_BYTES - 1] ^= bits;
        later[MESSAGE_HEADER_BYTES - 4] ^= bits;
        for other in [&whole[..cut], &first, &later] {
            prop_assert_eq!(&*with_our_request(other), other);
        }
        let mut encrypted = record(HANDSHAKE, 1, &whole);
        encrypted[3..5].copy_from_slice(&[0, 1]);
        prop_assert_eq!(&*rewritten(&encrypted, with_our_request), &encrypted);
    }

    #[test]
    fn garbage_stays_as_it_is(mut garbage in vec(any::<u8>(), 0..200), handshake in any::<bool>()) {
        if handshake && let Some(first) = garbage.first_mut() {
            *first = HANDSHAKE;
        }
        prop_assume!(!garbage.contains(&CERTIFICATE_REQUEST));
        prop_assert_eq!(&*with_our_request(&garbage), &garbage);
        prop_assert_eq!(&*rewritten(&garbage, with_our_request), &garbage);
    }
}

/// But the one.
fn message_of_any_type() -> impl Strategy<Value = Vec<u8>> {
    let other = any::<u8>().prop_filter("not the one", |t| *t != CERTIFICATE_REQUEST);
    (other, vec(any::<u8>(), 0..40)).prop_map(|(message_type, body)| message(message_type, 1, &body))
}

/// What happens to a datagram of the client.
#[derive(Clone, Debug)]
enum Harm {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Twice,
    Preceded(Vec<u8>),
    /// By a record in the clear.
    PrecededByMessage(u8, u8, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Harm::Cut),
        (any::<prop::sample::Index>(), 1u8..).prop_map(|(at, bits)| Harm::Flip(at, bits)),
        Just(Harm::Twice),
        vec(any::<u8>(), 0..100).prop_map(Harm::Preceded),
        (0u8..25, 0u8..8, vec(any::<u8>(), 0..100)).prop_map(|(t, n, body)| Harm::PrecededByMessage(t, n, body)),
    ]
}

fn harmed(datagram: &[u8], harm: Harm) -> Vec<Vec<u8>> {
    let mut datagram = datagram.to_vec();
    match harm {
        Harm::Cut(at) => datagram.truncate(at.index(datagram.len())),
        Harm::Flip(at, bits) => {
            let at = at.index(datagram.len());
            datagram[at] ^= bits;
        }
        Harm::Twice => return vec![datagram.clone(), datagram],
        Harm::Preceded(garbage) => return vec![garbage, datagram],
        Harm::PrecededByMessage(t, n, body) => {
            return vec![record(HANDSHAKE, 100 + n, &message(t, n, &body)), datagram];
        }
    }
    vec![datagram]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The handshake fails, or goes on; and there are no keys without the certificate.
    #[test]
    fn no_client_makes_a_server_panic(harms in vec(proptest::option::of(harm()), 1..8)) {
        let (mut client, mut server) = (rsa_client(RSA.clone()), ours(false));
        let mut now = start();
        for harm in harms {
            let sent = client.wait_until(now).unwrap_or_default();
            let _ = server.wait_until(now);
            for datagram in sent {
                let arrived = match harm.clone() {
                    Some(harm) => harmed(&datagram, harm),
                    None => vec![datagram],
                };
                for answer in arrived.iter().filter_map(|d| server.receive(d).ok()).flatten() {
                    let _ = client.dtls.handle_packet(&answer);
                }
            }
            now = now.max(client.due.min(server.due));
        }
        let certified = server.said.first() == Some(&Said::Certificate(RSA.certificate.clone()));
        prop_assert!(certified || !server.has_keys(), "{:?}", server.said);
    }
}
