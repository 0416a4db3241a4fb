//! Attributes of a series: few, cheap to clone, equal by content.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The value of a series' attribute.
#[derive(Clone)]
pub enum Value {
    /// A name known at build time.
    Static(&'static str),
    /// A name learned at run time, shared by all series that carry it.
    Shared(Arc<str>),
    /// A number: a server port.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl Value {
    /// The text, where it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Static(text) => Some(text),
            Self::Shared(text) => Some(text),
            Self::Int(_) | Self::Bool(_) => None,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Static(_) | Self::Shared(_), Self::Static(_) | Self::Shared(_)) => {
                self.as_str() == other.as_str()
            }
            (Self::Int(_) | Self::Bool(_) | Self::Static(_) | Self::Shared(_), _) => false,
        }
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Static(text) => text.hash(state),
            Self::Shared(text) => text.as_ref().hash(state),
            Self::Int(number) => number.hash(state),
            Self::Bool(yes) => yes.hash(state),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(text) => f.write_str(text),
            Self::Shared(text) => f.write_str(text),
            Self::Int(number) => number.fmt(f),
            Self::Bool(yes) => yes.fmt(f),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(text) => text.fmt(f),
            Self::Shared(text) => text.fmt(f),
            Self::Int(number) => number.fmt(f),
            Self::Bool(yes) => yes.fmt(f),
        }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Static(text)
    }
}

impl From<Cow<'static, str>> for Value {
    fn from(text: Cow<'static, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::from(text),
            Cow::Owned(text) => Self::from(Arc::<str>::from(text)),
        }
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::Shared(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

/// One attribute: a constant of [`crate::event::key`], and its value.
pub type Attr = (&'static str, Value);

/// An attribute, written shortly.
pub fn attr(key: &'static str, value: impl Into<Value>) -> Attr {
    (key, value.into())
}

/// The attributes under which a series is kept, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attrs(Box<[Attr]>);

impl Attrs {
    /// Sorts by key, so that one set of attributes is one series whatever order it was written in.
    #[must_use]
    pub fn new(attrs: &[Attr]) -> Self {
        let mut attrs: Box<[Attr]> = attrs.into();
        attrs.sort_unstable_by_key(|(key, _)| *key);
        Self(attrs)
    }

    /// In the order of the keys.
    pub fn iter(&self) -> std::slice::Iter<'_, Attr> {
        self.0.iter()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    pub(super) fn as_slice(&self) -> &[Attr] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Attrs {
    type Item = &'a Attr;
    type IntoIter = std::slice::Iter<'a, Attr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Whether a look-up may use the slice as it stands.
pub(super) fn is_sorted(attrs: &[Attr]) -> bool {
    attrs.is_sorted_by_key(|(key, _)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    #[test]
    fn equal_by_content_and_whatever_the_order() {
        let fixed = Attrs::new(&[attr("b", "x"), attr("a", 1i64)]);
        let learned = Attrs::new(&[attr("a", 1i64), attr("b", Arc::<str>::from("x"))]);
        assert_eq!(fixed, learned);
        let state = foldhash::fast::RandomState::default();
        assert_eq!(state.hash_one(&fixed), state.hash_one(&learned));
        assert_ne!(fixed, Attrs::new(&[attr("a", 1i64), attr("b", "y")]));
        assert_ne!(Attrs::new(&[attr("a", 1i64)]), Attrs::new(&[attr("a", "1")]));
        assert_eq!(fixed.get("b").map(ToString::to_string).as_deref(), Some("x"));
    }
}
