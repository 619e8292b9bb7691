//! What a page must hold: a function of the seed, its address and its generation, so that a page
//! that is lost, stale or misplaced cannot pass for the right one.

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// 64-bit words of a page.
pub const PAGE_WORDS: usize = 512;
/// 64-bit words that are rewritten where only a page's first line is touched.
pub const LINE_WORDS: usize = 8;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the pages of one guest hold.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Seed of the guest's pages.
    pub seed: u64,
    /// Words that change with the generation; the rest stays at generation 1.
    pub changing_words: usize,
}

/// A word that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Index of the word.
    pub word: usize,
    /// What was found.
    pub found: u64,
}

impl Content {
    /// The first word of the page at `gpa` in `generation`; each next one is [`STEP`] more.
    /// The mixing is `splitmix64`'s finaliser.
    pub fn first_word(&self, gpa: u64, generation: u64) -> u64 {
        let mut x = self.seed.wrapping_mul(STEP) ^ gpa ^ generation.rotate_left(40);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Writes what changes from the generation before to this one.
    pub fn rewrite(&self, page: &mut [u64; PAGE_WORDS], gpa: u64, generation: u64) {
        write(
            &mut page[..self.changing_words],
            self.first_word(gpa, generation),
            0,
        );
    }

    /// Writes a whole page for the first time (generation 1).
    pub fn fill(&self, page: &mut [u64; PAGE_WORDS], gpa: u64) {
        write(page, self.first_word(gpa, 1), 0);
    }

    /// Compares a page with what it must hold.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn verify(
        &self,
        page: &[u64; PAGE_WORDS],
        gpa: u64,
        generation: u64,
    ) -> Result<(), Mismatch> {
        let (changing, constant) = page.split_at(self.changing_words);
        verify(changing, self.first_word(gpa, generation), 0)?;
        if constant.is_empty() {
            return Ok(());
        }
        verify(constant, self.first_word(gpa, 1), self.changing_words)
    }
}

fn word_at(first: u64, index: usize) -> u64 {
    first.wrapping_add((index as u64).wrapping_mul(STEP))
}

fn write(words: &mut [u64], first: u64, offset: usize) {
    let mut value = word_at(first, offset);
    for word in words {
        *word = value;
        value = value.wrapping_add(STEP);
    }
}

fn verify(words: &[u64], first: u64, offset: usize) -> Result<(), Mismatch> {
    let (mut value, mut difference) = (word_at(first, offset), 0);
    for word in words {
        difference |= word ^ value;
        value = value.wrapping_add(STEP);
    }
    if difference == 0 {
        return Ok(());
    }
    let bad = |(index, found): (usize, &u64)| {
        (*found != word_at(first, offset + index)).then_some(Mismatch {
            word: offset + index,
            found: *found,
        })
    };
    Err(words.iter().enumerate().find_map(bad).unwrap_or(Mismatch {
        word: offset,
        found: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Content = Content {
        seed: 7,
        changing_words: PAGE_WORDS,
    };
    const LINE: Content = Content {
        seed: 7,
        changing_words: LINE_WORDS,
    };

    #[test]
    fn a_page_passes_only_for_itself() {
        for content in [WHOLE, LINE] {
            let mut page = [0; PAGE_WORDS];
            assert!(content.verify(&page, 0x1000, 1).is_err());
            content.fill(&mut page, 0x1000);
            assert_eq!(content.verify(&page, 0x1000, 1), Ok(()));
            content.rewrite(&mut page, 0x1000, 2);
            assert_eq!(content.verify(&page, 0x1000, 2), Ok(()));
            assert!(content.verify(&page, 0x1000, 1).is_err());
            assert!(content.verify(&page, 0x2000, 2).is_err());
            assert!(
                Content { seed: 8, ..content }
                    .verify(&page, 0x1000, 2)
                    .is_err()
            );
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found() {
        for content in [WHOLE, LINE] {
            let mut page = [0; PAGE_WORDS];
            content.fill(&mut page, 0);
            content.rewrite(&mut page, 0, 5);
            for word in 0..PAGE_WORDS {
                page[word] ^= 1 << (word % 64);
                let mismatch = Mismatch {
                    word,
                    found: page[word],
                };
                assert_eq!(content.verify(&page, 0, 5), Err(mismatch));
                page[word] ^= 1 << (word % 64);
            }
        }
    }
}
