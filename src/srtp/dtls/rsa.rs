//! Clients with an RSA certificate, as GStreamer's: asked for it, and their signatures verified.
//!
//! A client signs with what our CertificateRequest names (RFC 5246 §7.4.4). dimpl lets its crypto provider verify every
//! signature, but writes that message itself and names only ECDSA. So the message is replaced wherever it goes, and both
//! ends have hashed the same bytes. Were one place left out, no handshake would ever succeed.
//!
//! ```text
//!   dimpl ─┬─ flight 4 ───> poll_output ───────> the client
//!          └─ transcript ─┬─> TranscriptHash ──> master secret, Finished
//!                         └─> Verifier ────────> the client's CertificateVerify
//! ```
//!
//! Only as DTLS server. As client we would need cipher suites that dimpl does not have, but then the peer has chosen to be
//! the server: whoever leaves it to us gets to be the client.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use dimpl::crypto::{
    Buf, CryptoProvider, HashAlgorithm, HashContext, HashProvider, SignatureAlgorithm, SignatureVerifier,
};
use dimpl::{CryptoError, CryptoOperation, Output};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::limits;

/// Datagrams of a handshake that dimpl keeps until a message is whole; more are refused. Its own default.
pub(super) const QUEUED_DATAGRAMS_MAX: usize = 30;

/// So no output is longer than this, a certificate included, which dimpl asserts to have room for.
const OUTPUT_BYTES_MAX: usize = QUEUED_DATAGRAMS_MAX * limits::MEDIA_DATAGRAM_BYTES_MAX;

const RECORD_HEADER_BYTES: usize = 13;
const MESSAGE_HEADER_BYTES: usize = 12;

/// Content type of a record, and type of a message in it (RFC 5246 §6.2.1, §7.4).
const HANDSHAKE: u8 = 22;
const CERTIFICATE_REQUEST: u8 = 13;

/// Our CertificateRequest: certificates with an ECDSA or RSA key; ECDSA with SHA-256 or SHA-384, RSA PKCS #1 with
/// SHA-256; no authority by name.
const REQUEST: [u8; 13] = [2, 64, 1, 0, 6, 4, 3, 5, 3, 4, 1, 0, 0];

/// str0m's provider for dimpl, for DTLS 1.2 servers whose output passes [`poll_output`].
pub(super) fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        hash_provider: &Hashes,
        signature_verification: &Verifier,
        ..str0m_aws_lc_rs::dimpl_crypto_provider()
    }
}

thread_local! {
    static OUTPUT: RefCell<Box<[u8]>> = RefCell::new(vec![0; OUTPUT_BYTES_MAX].into());
}

/// `dimpl::Dtls::poll_output` with our CertificateRequest in place of dimpl's.
///
/// What is too long for `buf` is lost: the session must end at `BufferTooSmall`, which str0m makes an error. Of all outputs
/// only a client's certificate can be: packets keep to the MTU, application data came in a datagram.
pub(super) fn poll_output<'a>(dtls: &mut dimpl::Dtls, buf: &'a mut [u8]) -> Output<'a> {
    OUTPUT.with_borrow_mut(|output| match dtls.poll_output(output) {
        Output::Packet(packet) => copy(&rewritten(packet, with_our_request), buf, Output::Packet),
        Output::PeerCert(certificate) => copy(certificate, buf, Output::PeerCert),
        Output::ApplicationData(data) => copy(data, buf, Output::ApplicationData),
        Output::KeyingMaterial(material, profile) => Output::KeyingMaterial(material, profile),
        Output::Connected => Output::Connected,
        Output::CloseNotify => Output::CloseNotify,
        Output::Timeout(at) => Output::Timeout(at),
        // Ours is never too small; and what dimpl does not say yet ends the session all the same.
        _ => Output::BufferTooSmall { needed: usize::MAX },
    })
}

fn copy<'a>(from: &[u8], to: &'a mut [u8], output: fn(&'a [u8]) -> Output<'a>) -> Output<'a> {
    match to.get_mut(..from.len()) {
        Some(to) => {
            to.copy_from_slice(from);
            output(to)
        }
        None => Output::BufferTooSmall { needed: from.len() },
    }
}

/// A datagram with the messages of one record rewritten, the first that `rewrite` changes. Flight 4 is one datagram with
/// room to spare, so our request is whole in there.
fn rewritten(datagram: &[u8], rewrite: fn(&[u8]) -> Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
        let [content_type, _, _, epoch @ .., length_high, length_low] = header;
        let length = u16::from_be_bytes([*length_high, *length_low]);
        let Some((messages, after)) = after.split_at_checked(length.into()) else {
            break;
        };
        // From epoch 1 on records are encrypted.
        if *content_type == HANDSHAKE
            && epoch.starts_with(&[0, 0])
            && let Cow::Owned(messages) = rewrite(messages)
        {
            let before = &datagram[..datagram.len() - rest.len()];
            let length = (messages.len() as u16).to_be_bytes();
            return [before, &header[..RECORD_HEADER_BYTES - 2], &length, &messages, after].concat().into();
        }
        rest = after;
    }
    datagram.into()
}

/// Whole handshake messages, one after the other, with our request in place of dimpl's.
fn with_our_request(messages: &[u8]) -> Cow<'_, [u8]> {
    let Some(theirs) = find(messages, CERTIFICATE_REQUEST) else {
        return messages.into();
    };
    let (before, after) = (&messages[..theirs.start], &messages[theirs.end..]);
    let number = &messages[theirs.start + 4..][..2];
    let length = [0, 0, REQUEST.len() as u8];
    [before, &[CERTIFICATE_REQUEST], &length, number, &[0; 3], &length, &REQUEST, after].concat().into()
}

/// Where the first message of a type is, its header included:
///
/// ```text
///   0      1           4            6              9                 12
///   | type |  length   |  number    |  0 (offset)  |  length again   | body …     (RFC 6347 §4.2.2, unfragmented)
/// ```
fn find(messages: &[u8], message_type: u8) -> Option<Range<usize>> {
    let mut start = 0;
    while let Some([found, a, b, c, _, _, offset @ .., d, e, f]) =
        messages[start..].first_chunk::<MESSAGE_HEADER_BYTES>()
    {
        let end = start + MESSAGE_HEADER_BYTES + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let whole = *offset == [0; 3] && (a, b, c) == (d, e, f) && end <= messages.len();
        if !whole {
            return None;
        }
        if *found == message_type {
            return Some(start..end);
        }
        start = end;
    }
    None
}

#[derive(Debug)]
struct Hashes;

impl HashProvider for Hashes {
    fn create_hash(&self, algorithm: HashAlgorithm) -> Box<dyn HashContext> {
        Box::new(TranscriptHash(str0m_aws_lc_rs::dimpl_crypto_provider().hash_provider.create_hash(algorithm)))
    }
}

/// dimpl's DTLS 1.2 hashes transcripts only, each in one piece.
#[derive(Debug)]
struct TranscriptHash(Box<dyn HashContext>);

impl HashContext for TranscriptHash {
    fn update(&mut self, transcript: &[u8]) {
        self.0.update(&with_our_request(transcript));
    }

    fn clone_and_finalize(&self, out: &mut Buf) {
        self.0.clone_and_finalize(out);
    }
}

/// A DTLS 1.2 server verifies CertificateVerify only: what is signed is the transcript so far.
#[derive(Debug)]
struct Verifier;

impl SignatureVerifier for Verifier {
    fn verify_signature(
        &self,
        certificate: &[u8],
        transcript: &[u8],
        signature: &[u8],
        hash: HashAlgorithm,
        algorithm: SignatureAlgorithm,
    ) -> Result<(), CryptoError> {
        let signed = with_our_request(transcript);
        if (hash, algorithm) == (HashAlgorithm::SHA256, SignatureAlgorithm::RSA) {
            return verify_rsa(certificate, &signed, signature);
        }
        let others = str0m_aws_lc_rs::dimpl_crypto_provider().signature_verification;
        others.verify_signature(certificate, &signed, signature, hash, algorithm)
    }
}

/// By a key of 2048 to 8192 bits. A key of another kind is no RSAPublicKey (RFC 8017 §A.1.1).
fn verify_rsa(certificate: &[u8], signed: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| CryptoError::CertificateParseFailed)?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    let key = key.subject_public_key.as_bytes().ok_or(CryptoError::InvalidSubjectPublicKey)?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(signed, signature)
        .map_err(|_| CryptoError::OperationFailed(CryptoOperation::VerifySignature))
}

#[cfg(test)]
#[path = "rsa_tests.rs"]
mod tests;
