//! Disks that become larger or smaller.

use vireo_vdisk::{Medium, SECTOR};

use crate::create::{MAX_SIZE, NOWHERE, blocks};
use crate::footer::{self, Footer, Geometry};
use crate::header::Header;
use crate::{Result, Vhd, VhdError};

impl<M: Medium> Vhd<M> {
    /// Makes the disk larger, durably. What is new is zero, or the parent's. If it fails, or a crash comes between, the
    /// disk has its size or the new one.
    ///
    /// # Errors
    /// The size is not possible, or less than the disk's; the image is read-only; those of the medium.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        self.check_size(size, size < self.size())?;
        self.flush()?;
        match self.block() {
            None => self.grow_fixed(size),
            Some(block) => {
                let entries = blocks(size, block)?;
                self.clear_tail(block)?;
                let table = match entries <= self.room() {
                    true => self.clear_entries(entries)?,
                    false => self.move_table(entries)?,
                };
                self.set_table(table, entries)?;
                self.set_size(size)
            }
        }
    }

    /// Makes the disk smaller, durably. What is beyond is lost. Blocks of it are given up, but the file of a dynamic
    /// image stays as long as it is.
    ///
    /// # Errors
    /// The size is not possible, or more than the disk's; it has a parent, whose data would come back when it grows;
    /// the image is read-only; those of the medium.
    pub fn shrink(&mut self, size: u64) -> Result<()> {
        self.check_size(size, size > self.size())?;
        if self.parent().is_some() {
            return Err(VhdError::Unsupported("a parent, so that a smaller size".into()));
        }
        let Some(block) = self.block() else { return self.shrink_fixed(size) };
        let entries = blocks(size, block)?;
        for block in entries..blocks(self.size(), block)? {
            self.give_up(block);
        }
        self.flush()?;
        self.set_size(size)?;
        self.set_table(self.sparse().map_or(0, |s| s.header.table_at), entries)
    }

    fn check_size(&self, size: u64, wrong: bool) -> Result<()> {
        if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_SIZE || wrong {
            return Err(VhdError::BadSize(size));
        }
        self.check_change(0, 0)
    }

    fn with_size(&self, size: u64) -> Footer {
        Footer { size, geometry: Geometry::of(size), ..self.footer().clone() }
    }

    /// At each moment a footer is the last of the file, and none is on the disk that it tells of.
    fn grow_fixed(&mut self, size: u64) -> Result<()> {
        let old = self.size();
        if size == old {
            return Ok(());
        }
        self.put(size, &self.footer().bytes())?;
        self.sync()?;
        self.medium().punch(old, size - old).map_err(VhdError::io("clear the old footer"))?;
        self.set_len(size + footer::SIZE as u64)?;
        self.sync()?;
        let footer = self.with_size(size);
        self.put(size, &footer.bytes())?;
        self.sync()?;
        self.footer = footer;
        Ok(())
    }

    /// The same.
    fn shrink_fixed(&mut self, size: u64) -> Result<()> {
        let footer = self.with_size(size);
        let len = self.medium().len().map_err(VhdError::io("find the end of the VHD"))?;
        let last = len.saturating_sub(footer::SIZE as u64).max(self.size());
        for at in [last, size] {
            self.put(at, &footer.bytes())?;
            self.sync()?;
        }
        self.set_len(size + footer::SIZE as u64)?;
        self.sync()?;
        self.footer = footer;
        Ok(())
    }

    /// Writes both footers of a sparse image: one after the other, so that one is always whole.
    fn set_size(&mut self, size: u64) -> Result<()> {
        let Some(end) = self.sparse().map(|s| s.end) else { return Ok(()) };
        let footer = self.with_size(size);
        for at in [0, end] {
            self.put(at, &footer.bytes())?;
            self.sync()?;
        }
        self.footer = footer;
        Ok(())
    }

    /// What the last block has behind the disk's end is nobody's yet.
    fn clear_tail(&mut self, block: u32) -> Result<()> {
        let (used, last) = (self.size() % u64::from(block), (self.size() - 1) / u64::from(block));
        match self.data_of(last as u32) {
            Some(data) if used > 0 => self
                .medium()
                .punch(data + used, u64::from(block) - used)
                .map_err(VhdError::io("clear what is behind the disk's end")),
            _ => Ok(()),
        }
    }

    /// Entries that the table can have where it is.
    fn room(&self) -> u32 {
        let Some(sparse) = self.sparse() else { return 0 };
        let at = sparse.header.table_at;
        let behind = self.used().into_iter().map(|u| u.at).filter(|other| *other > at);
        let room = behind.min().unwrap_or(sparse.end).min(sparse.end).saturating_sub(at) / 4;
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    /// Has the header say, durably, where the table is, and how many entries count: as many as there are blocks, which
    /// some readers insist on. If it fails nobody knows where the table is, and the image cannot be changed any more.
    fn set_table(&mut self, table_at: u64, entries: u32) -> Result<()> {
        let header_at = self.footer.header_at.unwrap_or(SECTOR);
        let set = Header::set_table(&self.medium, header_at, table_at, entries).and_then(|()| self.sync());
        self.writable = set.is_ok();
        if let Some(sparse) = self.sparse.as_mut().filter(|_| set.is_ok()) {
            (sparse.header.table_at, sparse.header.entries) = (table_at, entries);
            sparse.table.resize(entries as usize, NOWHERE);
        }
        set
    }

    /// Entries that did not count until now may be anything. Gives where the table is.
    fn clear_entries(&mut self, entries: u32) -> Result<u64> {
        let Some(sparse) = self.sparse() else { return Ok(0) };
        let old = sparse.table.len() as u32;
        let nowhere = vec![0xff; 4 * entries.saturating_sub(old) as usize];
        self.put(sparse.header.table_at + 4 * u64::from(old), &nowhere)?;
        self.sync()?;
        Ok(sparse.header.table_at)
    }

    /// Writes the table anew at the end, with room to grow. The header is to lead there next: what changes in that is
    /// in its first sector, which is there as a whole or not. Gives where the new table is.
    fn move_table(&mut self, entries: u32) -> Result<u64> {
        let Some(sparse) = &self.sparse else { return Ok(0) };
        let most = MAX_SIZE.div_ceil(sparse.header.block.into()) as u32;
        let room = entries.max(entries.saturating_mul(4).min(most));
        let mut table: Vec<u8> = sparse.table.iter().flat_map(|e| e.to_be_bytes()).collect();
        table.resize((4 * room as usize).next_multiple_of(SECTOR as usize), 0xff);
        let (at, end) = (sparse.end, sparse.end + table.len() as u64);
        // The old footer's place becomes the table's: the new one first.
        self.set_len(end)?;
        self.put(end, &self.footer().bytes())?;
        self.put(at, &table)?;
        self.sync()?;
        if let Some(sparse) = &mut self.sparse {
            sparse.end = end;
        }
        Ok(at)
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.medium().write(at, bytes).map_err(VhdError::io("write the VHD"))
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        self.medium().set_len(len).map_err(VhdError::io("change the length of the VHD"))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.medium().flush().map_err(VhdError::io("flush the VHD"))
    }
}
