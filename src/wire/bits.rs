//! Numbers of some bits each, as codecs' headers have them.

/// Reads from the highest bit of each byte down. `None`: nothing is left.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    pub fn new(bytes: &[u8]) -> Bits<'_> {
        Bits { bytes, at: 0 }
    }

    /// Bits read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// `count`: 64 at most.
    pub fn take(&mut self, count: usize) -> Option<u64> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    pub fn flag(&mut self) -> Option<bool> {
        self.take(1).map(|bit| bit == 1)
    }

    /// `ns(values)` of AV1: a number below `values`, the lower ones in one bit less.
    pub fn non_symmetric(&mut self, values: u64) -> Option<u64> {
        let width = (u64::BITS - values.leading_zeros()) as usize;
        let short = (1 << width) - values;
        let value = self.take(width - 1)?;
        if value < short {
            return Some(value);
        }
        Some((value << 1) - short + self.take(1)?)
    }

    /// `ue(v)` of H.264, `uvlc()` of AV1: as many zeros as bits follow the one behind them. `None` beyond 32 bits, too.
    pub fn exp_golomb(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
        }
        if zeros >= u32::BITS as usize {
            return None;
        }
        Some((1 << zeros) - 1 + self.take(zeros)? as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_golomb_codes_are_those_of_the_standard() {
        // 1, 010, 011, 00100, 00111, 0001000: ITU-T H.264 table 9-2.
        let bytes = [0b1010_0110, 0b0100_0011, 0b1000_1000];
        let mut bits = Bits::new(&bytes);
        let codes: Vec<_> = std::iter::from_fn(|| bits.exp_golomb()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 6, 7]);
        assert_eq!(Bits::new(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).exp_golomb(), Some(u32::MAX - 1));
        assert_eq!(Bits::new(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]).exp_golomb(), None);
    }

    #[test]
    fn non_symmetric_numbers_are_those_of_the_specification() {
        // Of five: 00, 01, 10, 110, 111.
        let bytes = [0b0001_1011, 0b0111_0000];
        let mut bits = Bits::new(&bytes);
        assert_eq!([0; 5].map(|_| bits.non_symmetric(5)), [Some(0), Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(bits.position(), 12);
        assert_eq!(Bits::new(&[]).non_symmetric(1), Some(0));
    }
}
