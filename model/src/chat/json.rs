//! `tojson` as transformers defines it for chat templates: Python's `json.dumps` with
//! `ensure_ascii=False`, and nothing escaped for HTML.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Deeper indents are refused: they only serve to blow up the output.
const MAX_INDENT: usize = 64;

/// The filter; takes `ensure_ascii`, `indent`, `separators` and `sort_keys` by name.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent = kwargs.get::<Option<usize>>("indent")?;
    if indent.is_some_and(|n| n > MAX_INDENT) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: indent is above {MAX_INDENT}"),
        ));
    }
    let (item, key) = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (
            if indent.is_some() { "," } else { ", " }.to_string(),
            ": ".to_string(),
        ),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators must be two strings",
            ));
        }
    };
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if sort {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    let style = Python {
        item,
        key,
        ascii,
        indent,
        depth: 0,
        empty: true,
    };
    value
        .serialize(&mut Serializer::with_formatter(&mut out, style))
        .map_err(failed)?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python's layout: spaces after separators, or one item a line.
struct Python {
    item: String,
    key: String,
    ascii: bool,
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost array or object has nothing in it yet.
    empty: bool,
}

impl Python {
    fn open<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.line(out)
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(width) => write!(out, "\n{:1$}", "", width * self.depth),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                out.write_all(&[c as u8])?;
            } else {
                c.encode_utf16(&mut [0; 2])
                    .iter()
                    .try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(expression: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", super::tojson);
        let value: serde_json::Value =
            serde_json::json!({"b": [1, 2.5, "<é'>"], "a": {}, "n": null, "t": true});
        env.render_str(expression, context! { x => minijinja::value::Serde(value) })
            .unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn pythons_layout() {
        assert_eq!(
            render("{{ x|tojson }}"),
            r#"{"b": [1, 2.5, "<é'>"], "a": {}, "n": null, "t": true}"#
        );
        assert_eq!(
            render("{{ x.b|tojson(indent=2) }}"),
            "[\n  1,\n  2.5,\n  \"<é'>\"\n]"
        );
        assert_eq!(
            render("{{ {'a': [[], {'k': 1}]}|tojson(indent=1) }}"),
            "{\n \"a\": [\n  [],\n  {\n   \"k\": 1\n  }\n ]\n}"
        );
        assert_eq!(
            render("{{ x.b|tojson(separators=(',', ':')) }}"),
            r#"[1,2.5,"<é'>"]"#
        );
        assert_eq!(
            render("{{ 'é😀'|tojson(ensure_ascii=true) }}"),
            r#""\u00e9\ud83d\ude00""#
        );
        assert_eq!(
            render("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}"),
            r#"{"a": 2, "b": 1}"#
        );
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(render("{{ x|tojson(indent=100000000) }}").contains("indent"));
        assert!(render("{{ x|tojson(separators=[',']) }}").contains("separators"));
        assert!(render("{{ x|tojson(colour=1) }}").contains("colour"));
    }
}
