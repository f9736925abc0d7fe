//! Identities that are a hash, each a type of its own, so that none is taken for another.

macro_rules! hash_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(keelstone_macros::Encode, keelstone_macros::Decode, keelstone_macros::OrderedKey)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub keelstone_codec::Hash);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = keelstone_codec::DecodeError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::from_hex(text)
            }
        }
        impl $name {
            /// Reads 64 hexadecimal digits.
            ///
            /// # Errors
            /// [`keelstone_codec::DecodeError::Invalid`] for anything else.
            pub fn from_hex(text: &str) -> Result<Self, keelstone_codec::DecodeError> {
                keelstone_codec::Hash::from_hex(text).map(Self)
            }
            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }
    };
}
pub(crate) use hash_newtype;
