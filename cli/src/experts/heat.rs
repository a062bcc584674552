//! Heat maps for terminals: a row a layer, a cell a rank or an expert, against the layer's highest.

use std::fmt::Write;

use crate::style::Style;

pub const DEFAULT_WIDTH: usize = 80;

/// Cold to hot, as heights where there is colour and as digits where there is none.
const BLOCKS: [char; 10] = [' ', '▁', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// xterm's 256 colours, from blue over green and yellow to red.
const COLOURS: [u8; 10] = [17, 18, 25, 31, 36, 70, 142, 178, 208, 196];

/// How it is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub style: Style,
    /// Columns there are.
    pub width: usize,
}

/// A row a layer, named by its number; `rows[layer][cell]`.
///
/// More cells than fit a line are put together, as many to one as needed; it shows the highest of
/// them, since that is the one that others wait for.
pub fn map(rows: &[Vec<u64>], indent: &str, look: Look) -> String {
    let label = digits(rows.len());
    let mut out = String::new();
    for (layer, row) in rows.iter().enumerate() {
        let highest = row.iter().copied().max().unwrap_or(0);
        let _ = write!(out, "{indent}{layer:>label$}  ");
        for few in row.chunks(together(row.len(), rows.len(), indent, look)) {
            let cell = few.iter().copied().max().unwrap_or(0);
            draw(&mut out, level(cell, highest), look.style);
        }
        let _ = writeln!(out, "{}", look.style.reset());
    }
    out
}

/// How many of `count` neighbours [`map`] puts into one cell.
pub fn together(count: usize, layers: usize, indent: &str, look: Look) -> usize {
    let taken = indent.len() + digits(layers) + 2;
    // A narrower terminal wraps lines; that is still something to look at.
    let room = look.width.saturating_sub(taken).max(8);
    count.div_ceil(room).max(1)
}

/// Of the largest number of a layer.
fn digits(layers: usize) -> usize {
    layers.saturating_sub(1).to_string().len()
}

/// 0 for nothing at all, else 1 to 9, where 9 is the highest.
fn level(value: u64, highest: u64) -> usize {
    match value {
        0 => 0,
        _ => ((9 * u128::from(value)).div_ceil(u128::from(highest)) as usize).clamp(1, 9),
    }
}

fn draw(out: &mut String, level: usize, style: Style) {
    let _ = match style {
        Style::Plain => write!(out, "{level}"),
        Style::Ansi => write!(out, "\x1b[38;5;{}m{}", COLOURS[level], BLOCKS[level]),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look {
        style: Style::Plain,
        width: 80,
    };

    #[test]
    fn digits_stand_for_parts_of_the_highest() {
        let rows = vec![vec![0, 1, 50, 100], vec![7, 7, 7, 7], vec![0; 4]];
        assert_eq!(map(&rows, "  ", PLAIN), "  0  0159\n  1  9999\n  2  0000\n");
    }

    #[test]
    fn a_terminal_gets_blocks_and_colours() {
        let look = Look {
            style: Style::Ansi,
            ..PLAIN
        };
        assert_eq!(
            map(&[vec![0, 100]], "", look),
            "0  \x1b[38;5;17m \x1b[38;5;196m█\x1b[0m\n"
        );
    }

    #[test]
    fn more_cells_than_columns_show_the_highest_of_each_few() {
        let mut row = vec![1; 256];
        row[255] = 900;
        let drawn = map(&[row], "  ", PLAIN);
        let line = drawn.trim_end();
        assert!(line.len() <= 80, "{line}");
        assert!(line.ends_with("19"), "{line}");
        assert_eq!(together(256, 1, "  ", PLAIN), 4);
        assert_eq!(together(32, 1, "  ", PLAIN), 1);
    }

    #[test]
    fn the_largest_counts_do_not_overflow() {
        assert_eq!(level(u64::MAX, u64::MAX), 9);
        assert_eq!(level(1, u64::MAX), 1);
    }
}
