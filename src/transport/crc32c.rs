//! CRC-32C, the checksum of the snappy format. `snap` keeps its own to itself.

/// The polynomial with its bits reversed, as the checksum shifts to the right.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// How many bytes are done at a time: twice as quick as eight.
const BLOCK: usize = 16;

/// `TABLES[n][byte]` is what `byte` adds to the checksum when `n` further bytes follow.
static TABLES: [[u32; 256]; BLOCK] = tables();

const fn tables() -> [[u32; 256]; BLOCK] {
    let mut tables = [[0; 256]; BLOCK];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ POLYNOMIAL
            } else {
                sum >> 1
            };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < BLOCK {
        let mut byte = 0;
        while byte < 256 {
            let sum: u32 = tables[table - 1][byte];
            tables[table][byte] = (sum >> 8) ^ tables[0][(sum & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The checksum of `bytes`, masked as snappy's framing format asks for.
pub(super) fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(mut bytes: &[u8]) -> u32 {
    let mut sum = !0_u32;
    while let Some((block, rest)) = bytes.split_first_chunk::<BLOCK>() {
        let block = (u128::from_le_bytes(*block) ^ u128::from(sum)).to_le_bytes();
        sum = 0;
        // From the end, so that the bytes which had to wait for the sum come last. By index, since a build without
        // optimization takes six times as long for iterators.
        let mut following = 0;
        while following < BLOCK {
            sum ^= TABLES[following][usize::from(block[BLOCK - 1 - following])];
            following += 1;
        }
        bytes = rest;
    }
    for byte in bytes {
        let [low, ..] = sum.to_le_bytes();
        sum = (sum >> 8) ^ TABLES[0][usize::from(low ^ byte)];
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_are_those_of_rfc_3720() {
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn blocks_and_single_bytes_give_the_same() {
        let bytes: Vec<u8> = (0..100_u8).map(|byte| byte.wrapping_mul(37)).collect();
        let mut by_bits = !0_u32;
        for (len, byte) in bytes.iter().enumerate() {
            assert_eq!(crc32c(&bytes[..len]), !by_bits, "{len}");
            by_bits ^= u32::from(*byte);
            for _ in 0..8 {
                by_bits = (by_bits >> 1) ^ (POLYNOMIAL * (by_bits & 1));
            }
        }
    }
}
