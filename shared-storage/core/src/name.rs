//! Names that become file names: hosts, guests, images.

/// The longest name, in bytes.
pub const NAME_LIMIT: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters.
    #[error("the name is empty")]
    Empty,
    /// More than [`NAME_LIMIT`] bytes.
    #[error("the name has {0} bytes, at most {NAME_LIMIT} are allowed")]
    TooLong(usize),
    /// A first character that shells and file listings treat specially.
    #[error("the name starts with {0:?}; start it with a letter or a digit")]
    BadStart(char),
    /// A character outside the allowed set.
    #[error("the name contains {0:?}; use letters, digits, '-', '_' and '.'")]
    BadCharacter(char),
}

/// Checks that `name` can safely be a file name on every file system we support.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let first = name.chars().next().ok_or(NameError::Empty)?;
    if name.len() > NAME_LIMIT {
        return Err(NameError::TooLong(name.len()));
    }
    if let Some(bad) = name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c))
    {
        return Err(NameError::BadCharacter(bad));
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::BadStart(first));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    #[test]
    fn only_plain_file_names_pass() {
        for good in ["web1", "db-2.internal", "A_b"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(".."), Err(NameError::BadStart('.')));
        assert_eq!(check_name("-rf"), Err(NameError::BadStart('-')));
        assert_eq!(check_name("a/b"), Err(NameError::BadCharacter('/')));
        assert_eq!(check_name("a\0"), Err(NameError::BadCharacter('\0')));
        assert_eq!(
            check_name(&String::from_iter(['x'; 64])),
            Err(NameError::TooLong(64))
        );
    }
}
