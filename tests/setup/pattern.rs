//! What test buffers hold: bytes that differ from one seed and one place to the next, so that lost, stale and shifted bytes
//! are all noticed.

/// The word at `index` of a buffer filled with `seed`.
fn word(seed: u64, index: u64) -> u64 {
    let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ index;
    mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(29)
}

fn byte(seed: u64, offset: u64) -> u8 {
    word(seed, offset / 8).to_le_bytes()[(offset % 8) as usize]
}

/// Writes the part of `seed`'s pattern that begins at `offset`.
pub fn write(seed: u64, offset: u64, bytes: &mut [u8]) {
    let head = ((8 - offset % 8) % 8).min(bytes.len() as u64) as usize;
    let (head, rest) = bytes.split_at_mut(head);
    (offset..).zip(head.iter_mut()).for_each(|(at, byte_there)| *byte_there = byte(seed, at));
    let mut at = offset + head.len() as u64;
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&word(seed, at / 8).to_le_bytes()[..chunk.len()]);
        at += chunk.len() as u64;
    }
}

/// Compares with the part of `seed`'s pattern that begins at `offset`.
///
/// # Errors
/// Where the first wrong byte is and what it is.
pub fn check(seed: u64, offset: u64, bytes: &[u8]) -> Result<(), String> {
    let mut wanted = [0; 4096];
    for (index, chunk) in bytes.chunks(wanted.len()).enumerate() {
        let at = offset + (index * wanted.len()) as u64;
        let wanted = &mut wanted[..chunk.len()];
        write(seed, at, wanted);
        if wanted != chunk {
            let wrong = wanted.iter().zip(chunk).position(|(wanted, found)| wanted != found).unwrap_or(0);
            return Err(format!(
                "byte {} is {:#04x} instead of {:#04x} of pattern {seed}",
                at + wrong as u64,
                chunk[wrong],
                wanted[wrong]
            ));
        }
    }
    Ok(())
}
