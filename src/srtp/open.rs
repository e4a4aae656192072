//! What a peer sends us, as SRTP and SRTCP: made plain in place, each packet once.
//!
//! A peer counts the indices of each of its SSRCs by themselves (libsrtp does so for SRTCP too), hence a replay window
//! for each. A window is opened only by an authentic packet, so that strangers cannot fill the table.

use super::cipher::{Cipher, RTCP_E};
use super::keys::{MasterKey, Profile, Purpose};
use super::window::{Verdict, Window};
use crate::wire::rtp::ClearPart;

/// SSRCs of one peer. A browser uses one for each m-line; past this the peer is up to something.
const SOURCES_MAX: usize = 64;

/// Why a packet is dropped. It is counted by this, not logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not a packet of its kind")]
    Malformed,
    #[error("SRTCP without encryption, which WebRTC does not allow")]
    NotEncrypted,
    #[error("seen before, or too old to tell")]
    Replayed,
    #[error("not authentic")]
    Forged,
    #[error("the peer uses too many SSRCs")]
    TooManySources,
}

/// Opens the SRTCP of one peer.
#[derive(Debug)]
pub struct RtcpOpener {
    cipher: Cipher,
    sources: Sources,
}

impl RtcpOpener {
    /// `remote` is [`MasterKeys::remote`](super::keys::MasterKeys).
    pub fn new(remote: MasterKey<'_>) -> RtcpOpener {
        RtcpOpener { cipher: Cipher::new(&remote.session_key(Purpose::Rtcp)), sources: Sources::default() }
    }

    pub fn profile(&self) -> Profile {
        self.cipher.profile()
    }

    /// Opens in place and returns the length of the compound packet at the front of `packet`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, see [`OpenError`]; what `packet` holds is then unspecified.
    pub fn open_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, OpenError> {
        let trailer = self.cipher.rtcp_trailer(packet).filter(|_| packet[0] >> 6 == 2).ok_or(OpenError::Malformed)?;
        if trailer & RTCP_E == 0 {
            return Err(OpenError::NotEncrypted);
        }
        let index = u64::from(trailer & !RTCP_E);
        let ssrc = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        self.sources.check(ssrc, index)?;
        let plain_bytes = self.cipher.open_rtcp(packet, ssrc, trailer).map_err(|_| OpenError::Forged)?;
        self.sources.note(ssrc, index);
        Ok(plain_bytes)
    }
}

/// A packet that has been opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedRtp {
    /// The sequence number with the number of its roll-overs above it.
    pub index: u64,
    /// Of header and payload, padding included, at the front of the buffer.
    pub plain_bytes: usize,
}

/// Opens the SRTP of one peer.
#[derive(Debug)]
pub struct RtpOpener {
    cipher: Cipher,
    sources: Sources,
}

impl RtpOpener {
    /// `remote` is [`MasterKeys::remote`](super::keys::MasterKeys).
    pub fn new(remote: MasterKey<'_>) -> RtpOpener {
        RtpOpener { cipher: Cipher::new(&remote.session_key(Purpose::Rtp)), sources: Sources::default() }
    }

    pub fn profile(&self) -> Profile {
        self.cipher.profile()
    }

    /// Opens in place.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, see [`OpenError`]; what `packet` holds is then unspecified.
    pub fn open_rtp(&mut self, packet: &mut [u8]) -> Result<OpenedRtp, OpenError> {
        let ClearPart { header, header_bytes } = ClearPart::parse(packet).ok_or(OpenError::Malformed)?;
        let index = guess_index(self.sources.highest(header.ssrc), header.seq);
        self.sources.check(header.ssrc, index)?;
        let plain_bytes =
            self.cipher.open_rtp(packet, header_bytes, header.ssrc, index).map_err(|_| OpenError::Forged)?;
        self.sources.note(header.ssrc, index);
        Ok(OpenedRtp { index, plain_bytes })
    }
}

/// The index nearest to the highest one seen that ends in `seq` (RFC 3711 §3.3.1). A new source has not rolled over.
fn guess_index(highest: Option<u64>, seq: u16) -> u64 {
    let Some(highest) = highest else { return seq.into() };
    // Within 2^15 of the highest, to either side.
    let ahead = seq.wrapping_sub(highest as u16).cast_signed();
    highest.checked_add_signed(ahead.into()).unwrap_or(seq.into())
}

/// The replay windows of a peer. So few that a list is searched fastest.
#[derive(Debug, Default)]
struct Sources(Vec<(u32, Window)>);

impl Sources {
    fn highest(&self, ssrc: u32) -> Option<u64> {
        self.0.iter().find(|(s, _)| *s == ssrc).and_then(|(_, window)| window.highest())
    }

    /// Before the packet is known to be authentic.
    fn check(&self, ssrc: u32, index: u64) -> Result<(), OpenError> {
        match self.0.iter().find(|(s, _)| *s == ssrc) {
            Some((_, window)) if window.verdict(index) == Verdict::New => Ok(()),
            Some(_) => Err(OpenError::Replayed),
            None if self.0.len() < SOURCES_MAX => Ok(()),
            None => Err(OpenError::TooManySources),
        }
    }

    /// Once it is.
    fn note(&mut self, ssrc: u32, index: u64) {
        let at = self.0.iter().position(|(s, _)| *s == ssrc).unwrap_or_else(|| {
            self.0.push((ssrc, Window::default()));
            self.0.len() - 1
        });
        self.0[at].1.insert(index);
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::tests::hex;
    use super::super::seal::tests::*;
    use super::super::seal::{RtcpSealer, RtpSealer};
    use super::*;
    use crate::wire::rtp::{ExtensionForms, RtpHeader, write_header};

    const SSRC: u32 = 0x1234_5678;

    fn with_key<T>(profile: Profile, f: impl FnOnce(MasterKey<'_>) -> T) -> T {
        let bytes: Vec<u8> = (0..32).collect();
        let (key, salt) = match profile {
            Profile::Aes128Gcm => (16, 12),
            Profile::Aes256Gcm => (32, 12),
            Profile::Aes128CmSha1 => (16, 14),
        };
        f(MasterKey::new(profile, &bytes[..key], &bytes[..salt]).unwrap())
    }

    /// Header with an extension, 20 bytes, and a payload of 100.
    fn plain(ssrc: u32, index: u64) -> (Vec<u8>, usize) {
        let mut packet = vec![0; 64];
        let header = RtpHeader { payload_type: 96, seq: index as u16, ssrc, ..RtpHeader::default() };
        let header_bytes = write_header(&mut packet, &header, &[(1, b"0")], ExtensionForms::OneByte);
        packet.truncate(header_bytes);
        packet.resize(header_bytes + 100, index as u8);
        (packet, header_bytes)
    }

    fn sealed(sealer: &RtpSealer, ssrc: u32, index: u64) -> Vec<u8> {
        let (mut packet, header_bytes) = plain(ssrc, index);
        packet.resize(packet.len() + sealer.tag_bytes(), 0);
        sealer.seal_rtp(&mut packet, header_bytes, ssrc, index);
        packet
    }

    fn rtcp_plain(ssrc: u32) -> Vec<u8> {
        [&[0x80, 201, 0, 1][..], &ssrc.to_be_bytes(), &[0x81, 202, 0, 2], &ssrc.to_be_bytes(), &[1, 1, b'x', 0]]
            .concat()
    }

    fn sealed_rtcp(sealer: &mut RtcpSealer, ssrc: u32) -> Vec<u8> {
        let mut packet = rtcp_plain(ssrc);
        sealer.seal_rtcp(&mut packet).unwrap();
        packet
    }

    #[test]
    fn libsrtp_reference_packets() {
        for (profile, (key, salt), rtp, rtcp) in [
            (Profile::Aes128CmSha1, LIBSRTP_CM, LIBSRTP_CM_RTP, LIBSRTP_CM_RTCP),
            (Profile::Aes128Gcm, LIBSRTP_GCM, LIBSRTP_GCM_RTP, LIBSRTP_GCM_RTCP),
        ] {
            let (key, salt, mut rtp, mut rtcp) = (hex(key), hex(salt), hex(rtp), hex(rtcp));
            let key = MasterKey::new(profile, &key, &salt).unwrap();
            let opened = RtpOpener::new(key).open_rtp(&mut rtp).unwrap();
            assert_eq!((opened.index, &rtp[..opened.plain_bytes]), (0x1234, &*hex(LIBSRTP_RTP)));
            let length = RtcpOpener::new(key).open_rtcp(&mut rtcp).unwrap();
            assert_eq!(rtcp[..length], hex(LIBSRTP_RTCP));
        }
    }

    #[test]
    fn rtp_makes_the_round_trip_across_roll_overs() {
        for profile in Profile::ALL {
            let (sealer, mut opener) = with_key(profile, |key| (RtpSealer::new(key), RtpOpener::new(key)));
            // The highest first number that receivers need not guess at, and on past two roll-overs.
            for index in (0x7fff..0x2_0100_u64).step_by(0x3ff) {
                let mut packet = sealed(&sealer, SSRC, index);
                let opened = opener.open_rtp(&mut packet).unwrap();
                assert_eq!(opened.index, index, "{profile:?}");
                assert_eq!(packet[..opened.plain_bytes], plain(SSRC, index).0);
            }
        }
    }

    #[test]
    fn reordering_around_a_roll_over_is_undone() {
        for profile in Profile::ALL {
            let (sealer, mut opener) = with_key(profile, |key| (RtpSealer::new(key), RtpOpener::new(key)));
            for index in [0xfffe_u64, 0x1_0001, 0xffff, 0x1_0000, 0x1_0002] {
                assert_eq!(opener.open_rtp(&mut sealed(&sealer, SSRC, index)).unwrap().index, index);
            }
        }
    }

    #[test]
    fn the_index_is_guessed_within_half_the_numbers() {
        assert_eq!(guess_index(None, 0xffff), 0xffff);
        assert_eq!(guess_index(Some(5), 0xffff), 0xffff, "nothing lies before 0");
        assert_eq!(guess_index(Some(0x7fff), 0xfffe), 0xfffe);
        assert_eq!(guess_index(Some(0x1_0005), 0xffff), 0xffff);
        assert_eq!(guess_index(Some(0xffff), 0), 0x1_0000);
        assert_eq!(guess_index(Some(0x5_8000), 0x7fff), 0x5_7fff);
        assert_eq!(guess_index(Some(0x5_8001), 0), 0x6_0000);
    }

    #[test]
    fn rtcp_makes_the_round_trip() {
        for profile in Profile::ALL {
            let (mut sealer, mut opener) = with_key(profile, |key| (RtcpSealer::new(key), RtcpOpener::new(key)));
            for _ in 0..300 {
                let mut packet = sealed_rtcp(&mut sealer, SSRC);
                let length = opener.open_rtcp(&mut packet).unwrap();
                assert_eq!(packet[..length], rtcp_plain(SSRC));
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        for profile in Profile::ALL {
            let (sealer, mut rtcp_sealer) = with_key(profile, |key| (RtpSealer::new(key), RtcpSealer::new(key)));
            let (mut opener, mut rtcp_opener) = with_key(profile, |key| (RtpOpener::new(key), RtcpOpener::new(key)));
            let rtp = sealed(&sealer, SSRC, 77);
            let rtcp = sealed_rtcp(&mut rtcp_sealer, SSRC);
            for bit in 0..rtp.len() * 8 {
                let mut packet = rtp.clone();
                packet[bit / 8] ^= 1 << (bit % 8);
                assert!(opener.open_rtp(&mut packet).is_err(), "{profile:?} RTP bit {bit}");
            }
            for bit in 0..rtcp.len() * 8 {
                let mut packet = rtcp.clone();
                packet[bit / 8] ^= 1 << (bit % 8);
                assert!(rtcp_opener.open_rtcp(&mut packet).is_err(), "{profile:?} RTCP bit {bit}");
            }
            assert!(opener.open_rtp(&mut rtp.clone()).is_ok(), "forgeries leave no trace");
            assert!(rtcp_opener.open_rtcp(&mut rtcp.clone()).is_ok());
        }
    }

    #[test]
    fn a_cut_packet_is_refused() {
        for profile in Profile::ALL {
            let (sealer, mut rtcp_sealer) = with_key(profile, |key| (RtpSealer::new(key), RtcpSealer::new(key)));
            let (mut opener, mut rtcp_opener) = with_key(profile, |key| (RtpOpener::new(key), RtcpOpener::new(key)));
            let rtp = sealed(&sealer, SSRC, 77);
            let rtcp = sealed_rtcp(&mut rtcp_sealer, SSRC);
            for n in 0..rtp.len() {
                assert!(opener.open_rtp(&mut rtp[..n].to_vec()).is_err(), "{profile:?} cut to {n}");
            }
            for n in 0..rtcp.len() {
                assert!(rtcp_opener.open_rtcp(&mut rtcp[..n].to_vec()).is_err(), "{profile:?} cut to {n}");
            }
        }
    }

    #[test]
    fn a_replay_is_refused_and_late_packets_are_not() {
        for profile in Profile::ALL {
            let (sealer, mut rtcp_sealer) = with_key(profile, |key| (RtpSealer::new(key), RtcpSealer::new(key)));
            let (mut opener, mut rtcp_opener) = with_key(profile, |key| (RtpOpener::new(key), RtcpOpener::new(key)));
            let rtp: Vec<_> = (1000..1200).map(|index| sealed(&sealer, SSRC, index)).collect();
            let rtcp: Vec<_> = (0..200).map(|_| sealed_rtcp(&mut rtcp_sealer, SSRC)).collect();
            // The last first; then those 128 back at most are new, once.
            for round in 0..2 {
                for back in 0..200 {
                    let expected = if round == 0 && back < 128 { Ok(()) } else { Err(OpenError::Replayed) };
                    let got = opener.open_rtp(&mut rtp[199 - back].clone()).map(|_| ());
                    assert_eq!(got, expected, "{profile:?} RTP, {back} back");
                    let got = rtcp_opener.open_rtcp(&mut rtcp[199 - back].clone()).map(|_| ());
                    assert_eq!(got, expected, "{profile:?} RTCP, {back} back");
                }
            }
        }
    }

    /// libsrtp, so Chromium, has a counter for each SSRC, which all begin at 1.
    #[test]
    fn every_source_counts_for_itself() {
        for profile in Profile::ALL {
            let mut opener = with_key(profile, RtcpOpener::new);
            for ssrc in 1..=SOURCES_MAX as u32 {
                let mut packet = sealed_rtcp(&mut with_key(profile, RtcpSealer::new), ssrc);
                assert!(opener.open_rtcp(&mut packet).is_ok());
            }
            let mut one_more = sealed_rtcp(&mut with_key(profile, RtcpSealer::new), 1000);
            assert_eq!(opener.open_rtcp(&mut one_more), Err(OpenError::TooManySources));
        }
    }

    #[test]
    fn forgeries_do_not_fill_the_table() {
        for profile in Profile::ALL {
            let mut opener = with_key(profile, RtcpOpener::new);
            for ssrc in 0..2 * SOURCES_MAX as u32 {
                let mut packet = sealed_rtcp(&mut with_key(profile, RtcpSealer::new), ssrc);
                packet[9] ^= 1;
                assert_eq!(opener.open_rtcp(&mut packet), Err(OpenError::Forged));
            }
            assert!(opener.sources.0.is_empty());
        }
    }

    #[test]
    fn srtcp_in_the_clear_is_refused() {
        // RFC 7714 §17.3's way: authenticated, without E. Nothing is opened, so nothing need be authentic.
        for profile in Profile::ALL {
            let (mut sealer, mut opener) = with_key(profile, |key| (RtcpSealer::new(key), RtcpOpener::new(key)));
            let mut packet = sealed_rtcp(&mut sealer, SSRC);
            let at = packet.len() - if profile == Profile::Aes128CmSha1 { 14 } else { 4 };
            packet[at] &= 0x7f;
            assert_eq!(opener.open_rtcp(&mut packet), Err(OpenError::NotEncrypted));
        }
    }
}
