//! Private tables with masked indices.

/// A table with a power of two of entries. Loops can keep its [`Masked`] view, a pointer and a mask, in
/// registers.
#[derive(Debug)]
pub(super) struct Table<T>(Box<[T]>);

impl<T: Copy + Default> Table<T> {
    /// At least `count` default entries.
    pub(super) fn new(count: u16) -> Self {
        Self(vec![T::default(); usize::from(count).next_power_of_two()].into_boxed_slice())
    }
}

impl<T> Table<T> {
    #[inline(always)]
    pub(super) fn view(&mut self) -> Masked<'_, T> {
        Masked(&mut self.0)
    }

    /// The entry at `index`, modulo the table's length.
    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> &T {
        // SAFETY: the length is a power of two and not zero (`new`), so a masked index is in bounds.
        unsafe { self.0.get_unchecked(index & (self.0.len() - 1)) }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }
}

/// The entries of a borrowed table; only created by [`Table::view`].
#[derive(Debug)]
pub(super) struct Masked<'a, T>(&'a mut [T]);

impl<'a, T> Masked<'a, T> {
    /// The entry at `index`, modulo the table's length.
    #[inline(always)]
    pub(super) fn get(&mut self, index: usize) -> &mut T {
        let mask = self.0.len() - 1;
        // SAFETY: the length is a power of two and not zero (`Table::new`), so a masked index is in
        // bounds.
        unsafe { self.0.get_unchecked_mut(index & mask) }
    }

    /// The same for the lifetime of the borrow.
    #[inline(always)]
    pub(super) fn into_get(self, index: usize) -> &'a mut T {
        let mask = self.0.len() - 1;
        // SAFETY: as for `get`.
        unsafe { self.0.get_unchecked_mut(index & mask) }
    }

    /// The entry at `index` if there is one.
    #[inline(always)]
    pub(super) fn checked(&mut self, index: usize) -> Option<&mut T> {
        self.0.get_mut(index)
    }

    /// The same for the lifetime of the borrow.
    #[inline(always)]
    pub(super) fn into_checked(self, index: usize) -> Option<&'a mut T> {
        self.0.get_mut(index)
    }
}
