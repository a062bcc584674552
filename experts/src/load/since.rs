//! Windows out of sums.

/// Turns sums since a process started, as ranks report them, into what was counted since last asked.
///
/// Sums need no acknowledgement: a lost report is made good by the next one. One `Since` is for one
/// rank and may outlive its process; sums that have fallen are those of a new one, which began at 0.
#[derive(Debug, Clone, Default)]
pub struct Since {
    last: Vec<u64>,
}

impl Since {
    /// What `sums` has more than those of the last call, or all of it if they began anew: at the first
    /// call, when one has fallen, or when they are of another length.
    ///
    /// A process that restarts and overtakes every old sum between two reports goes unnoticed and is
    /// counted short; whoever knows that it is another life (another incarnation) takes a new `Since`.
    pub fn advance(&mut self, sums: &[u64]) -> Vec<u64> {
        let anew = sums.len() != self.last.len()
            || sums.iter().zip(&self.last).any(|(now, then)| now < then);
        let window = if anew {
            sums.to_vec()
        } else {
            sums.iter()
                .zip(&self.last)
                .map(|(now, then)| now - then)
                .collect()
        };
        self.last.clear();
        self.last.extend_from_slice(sums);
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_begins_at_zero() {
        let mut since = Since::default();
        assert_eq!(since.advance(&[5, 7]), [5, 7]);
        assert_eq!(since.advance(&[5, 10]), [0, 3]);
        assert_eq!(since.advance(&[6, 2]), [6, 2], "one sum fell");
        assert_eq!(since.advance(&[6, 2]), [0, 0]);
        assert_eq!(since.advance(&[9, 9, 9]), [9, 9, 9], "another model");
    }
}
