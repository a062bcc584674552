//! What both sides must agree on before a byte moves.

/// Page size, and everything else that decides what the bytes of a page mean, by name.
///
/// This crate knows no models: the workers name what matters to them (model revision, dtype,
/// layers, parallel layout) and the handshake refuses a peer by the name of the first field that
/// differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    page_bytes: usize,
    fields: Vec<(String, String)>,
}

/// The first field in which two layouts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub field: String,
    pub ours: String,
    pub theirs: String,
}

/// Most fields a layout may have (bounds the handshake).
pub(crate) const MAX_FIELDS: usize = 32;

const ABSENT: &str = "(absent)";

impl Layout {
    pub fn new(page_bytes: usize) -> Layout {
        Layout {
            page_bytes,
            fields: Vec::new(),
        }
    }

    /// Adds a field that a peer must have with the same value.
    ///
    /// Panics past 32 fields, or with a name or value longer than 1 KiB: layouts are written in
    /// code, not taken from input.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Layout {
        let (name, value) = (name.into(), value.to_string());
        assert!(
            self.fields.len() < MAX_FIELDS,
            "a layout has at most {MAX_FIELDS} fields"
        );
        assert!(
            name.len().max(value.len()) <= crate::codec::MAX_TEXT,
            "layout field {name} is too long"
        );
        self.fields.push((name, value));
        self
    }

    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    pub(crate) fn from_parts(page_bytes: usize, fields: Vec<(String, String)>) -> Layout {
        Layout { page_bytes, fields }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn difference(&self, theirs: &Layout) -> Option<Difference> {
        if self.page_bytes != theirs.page_bytes {
            return Some(Difference {
                field: "page bytes".into(),
                ours: self.page_bytes.to_string(),
                theirs: theirs.page_bytes.to_string(),
            });
        }
        let names = self
            .fields
            .iter()
            .chain(&theirs.fields)
            .map(|(name, _)| name);
        names.into_iter().find_map(|name| {
            let (ours, theirs) = (self.get(name), theirs.get(name));
            (ours != theirs).then(|| Difference {
                field: name.clone(),
                ours: ours.unwrap_or(ABSENT).into(),
                theirs: theirs.unwrap_or(ABSENT).into(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_field_that_differs() {
        let ours = Layout::new(64).with("dtype", "bf16").with("layers", 61);
        assert_eq!(ours.difference(&ours.clone()), None);
        let field = |theirs: Layout| ours.difference(&theirs).unwrap();
        assert_eq!(field(Layout::new(65)).field, "page bytes");
        let layers = field(Layout::new(64).with("dtype", "bf16").with("layers", 27));
        assert_eq!(
            (
                layers.field.as_str(),
                layers.ours.as_str(),
                layers.theirs.as_str()
            ),
            ("layers", "61", "27")
        );
        assert_eq!(
            field(Layout::new(64).with("dtype", "bf16")).theirs,
            "(absent)"
        );
        let extra = ours.clone().with("tensor parallel", 2);
        assert_eq!(ours.difference(&extra).unwrap().field, "tensor parallel");
        // Order of fields does not matter.
        assert_eq!(
            ours.difference(&Layout::new(64).with("layers", 61).with("dtype", "bf16")),
            None
        );
    }
}
