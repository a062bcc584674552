//! The two 8-bit number formats of FP8 checkpoints.

/// `float8_e4m3fn`: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities, and only
/// `0x7f` and `0xff` are NaN. Largest value 448.
pub static E4M3: [f32; 256] = e4m3_table();

/// The largest finite `float8_e4m3fn`.
pub const E4M3_MAX: f32 = 448.0;

/// Whether `code` is one of `float8_e4m3fn`'s two NaNs.
pub const fn e4m3_is_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// `float8_e8m0fnu`: two to the power of `code - 127`; 0xff is NaN.
pub const fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0xff => f32::NAN,
        // 2^-127 is a subnormal float32: the exponent field cannot express it.
        0 => f32::from_bits(1 << 22),
        code => f32::from_bits((code as u32) << 23),
    }
}

const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3_to_f32(code as u8);
        code += 1;
    }
    table
}

const fn e4m3_to_f32(code: u8) -> f32 {
    if e4m3_is_nan(code) {
        return f32::NAN;
    }
    let sign = (code as u32 >> 7) << 31;
    let exponent = (code as u32 >> 3) & 0xf;
    let mantissa = code as u32 & 7;
    let magnitude = if exponent == 0 {
        // Subnormal: mantissa / 8 * 2^-6.
        mantissa as f32 / 512.0
    } else {
        f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20)
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_corners() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
        ] {
            assert_eq!(E4M3[code], value);
            assert_eq!(E4M3[code | 0x80], -value);
        }
        assert_eq!(E4M3[0x38], 1.0);
        assert_eq!(E4M3[0x3c], 1.5);
        assert_eq!(E4M3[0x7e], E4M3_MAX);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert!(E4M3[0x80].is_sign_negative());
    }

    #[test]
    fn e4m3_grows_with_its_code() {
        assert!((0..0x7e).all(|code| E4M3[code] < E4M3[code + 1]));
    }

    #[test]
    fn e8m0_is_powers_of_two() {
        assert_eq!(e8m0_to_f32(127), 1.0);
        assert_eq!(e8m0_to_f32(126), 0.5);
        assert_eq!(e8m0_to_f32(1), f32::MIN_POSITIVE);
        assert_eq!(e8m0_to_f32(0), f32::MIN_POSITIVE / 2.0);
        assert_eq!(e8m0_to_f32(254), 2f32.powi(127));
        assert!(e8m0_to_f32(255).is_nan());
    }
}
