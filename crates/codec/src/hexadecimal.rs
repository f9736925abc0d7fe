//! Bytes as hexadecimal digits, of which there is one form: lower case. Text that is compared, looked for or hashed then stands
//! for other bytes wherever it differs.

/// A text is not the one form of any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected lower-case hexadecimal digits, two to a byte")]
pub struct NotHex;

/// The bytes of lower-case hexadecimal digits.
///
/// # Errors
/// [`NotHex`] for upper case as well.
pub fn unhex(text: impl AsRef<[u8]>) -> Result<Vec<u8>, NotHex> {
    let digits = text.as_ref();
    let mut bytes = vec![0; digits.len() / 2];
    unhex_into(digits, &mut bytes)?;
    Ok(bytes)
}

/// As [`unhex`], of as many bytes as there is room for.
///
/// # Errors
/// [`NotHex`], also for digits of more or fewer bytes.
pub fn unhex_into(text: impl AsRef<[u8]>, bytes: &mut [u8]) -> Result<(), NotHex> {
    let digits = text.as_ref();
    if digits.iter().any(u8::is_ascii_uppercase) {
        return Err(NotHex);
    }
    hex::decode_to_slice(digits, bytes).map_err(|_| NotHex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    #[test]
    fn bytes_have_one_form_in_hexadecimal() {
        assert_eq!(unhex("00ff1a"), Ok(vec![0, 0xff, 0x1a]));
        for text in ["0", "0g", "FF", "fF", "0x00", " 00"] {
            assert_eq!(unhex(text), Err(NotHex), "{text:?}");
        }
        assert_eq!(unhex_into("00", &mut [0; 2]), Err(NotHex));
        let hash = Hash([0xab; 32]).to_string();
        assert_eq!(Hash::from_hex(&hash), Ok(Hash([0xab; 32])));
        assert!(Hash::from_hex(&hash.to_uppercase()).is_err());
    }
}
