//! Tokens: how operators who are on no host of the cluster prove that they may steer it.
//!
//! A token is shown once, when it is made. The datastore (`trust/tokens.toml`) keeps only its
//! SHA-256: 256 random bits need no slower hash.

pub mod cli;
pub mod routes;

use std::collections::BTreeMap;
use std::fmt::Write;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use shared_storage::clock::random;
use shared_storage::document::Revised;
use shared_storage::{Datastore, StoreError};

use crate::revise::revise;

/// Makes a token recognisable to tools that look for secrets in files.
const PREFIX: &str = "godwit_";
/// Tokens a cluster may have.
const TOKENS_MAX: usize = 256;

/// `trust/tokens.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tokens {
    /// Tokens by name.
    pub tokens: BTreeMap<String, Token>,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Token {
    /// SHA-256 of the token, in hexadecimal.
    pub sha256: String,
    /// It may see everything and change nothing.
    pub read_only: bool,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
}

impl Tokens {
    /// Read them; a cluster that never made one has none.
    pub fn read(store: &Datastore) -> Result<Revised<Self>, StoreError> {
        match store.tokens() {
            Err(StoreError::Missing(_)) => Ok(Revised {
                revision: 0,
                spec: Self::default(),
            }),
            other => other,
        }
    }

    /// Change them. `change` may see them more than once, each time as they are then.
    pub fn change<R, E: From<StoreError>>(
        store: &Datastore,
        change: impl Fn(&mut Self) -> Result<R, E>,
    ) -> Result<R, E> {
        let write = |revision, tokens: &Self| store.update_tokens(revision, tokens);
        revise(|| Self::read(store), write, change)
    }

    /// Add one under a name that is free.
    fn add(&mut self, name: &str, token: Token) -> Result<(), String> {
        if self.tokens.contains_key(name) {
            return Err(format!(
                "there is a token {name} already; revoke it first: godwit token revoke {name}"
            ));
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(format!("{TOKENS_MAX} tokens are the most; revoke some"));
        }
        self.tokens.insert(name.to_owned(), token);
        Ok(())
    }

    /// The name and nature of the token that was `shown`, if it is one of ours. Takes as long
    /// for a token that is nearly right as for any other.
    pub fn find(&self, shown: &str) -> Option<(&str, &Token)> {
        let shown = hash(shown);
        let mut found = None;
        for (name, token) in &self.tokens {
            if same(token.sha256.as_bytes(), shown.as_bytes()) {
                found = Some((name.as_str(), token));
            }
        }
        found
    }
}

/// A new secret.
fn secret() -> String {
    PREFIX.to_owned() + &hex(&random::<32>())
}

fn hash(secret: &str) -> String {
    hex(digest(&SHA256, secret.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Compares without stopping at the first difference.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &str) -> Token {
        Token {
            sha256: hash(secret),
            read_only: true,
            created_unix_s: 0,
        }
    }

    #[test]
    fn a_token_is_found_by_its_secret_and_by_nothing_else() {
        let (mine, other) = (secret(), secret());
        assert_ne!(mine, other);
        assert_eq!(mine.len(), PREFIX.len() + 64);
        let mut tokens = Tokens::default();
        tokens.add("mine", token(&mine)).unwrap();
        tokens.add("other", token(&other)).unwrap();
        assert_eq!(tokens.find(&mine).unwrap().0, "mine");
        let hashed = tokens.tokens["mine"].sha256.clone();
        for wrong in ["", PREFIX, &mine[1..], &hashed, &mine.to_uppercase()] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
        let kept = toml::to_string(&tokens).unwrap();
        assert!(!kept.contains(&mine[PREFIX.len()..]), "{kept}");
        assert!(
            tokens
                .add("mine", token(&other))
                .unwrap_err()
                .contains("revoke")
        );
    }

    #[test]
    fn the_hash_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            hash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
