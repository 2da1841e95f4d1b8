//! What was made once is kept, by the hash of all that went into it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::file;
use crate::{ImageError, files};

/// Counts up when this crate makes something else out of the same input.
const RECIPE: &str = "1";

/// A folder with a sub-folder for each thing.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Below that folder, which is created.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be.
    pub(crate) fn open(folder: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder of the thing that `inputs` make: as `make` left it, now or before. Another process that wants the
    /// same waits; what was left half done by a crash is not seen.
    ///
    /// # Errors
    /// Those of `make`, and [`ImageError::File`].
    pub(crate) fn get(
        &self,
        inputs: &[&str],
        make: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let mut key = String::from(RECIPE);
        for input in inputs {
            key += &format!("\n{}:{input}", input.len());
        }
        let name = files::digest_of(key.as_bytes());
        let place = self.folder.join(&name[..32]);
        let _guard = self.lock(&name[..32])?;
        if !place.is_dir() {
            let temporary = tempfile::Builder::new().prefix(".making-").tempdir_in(&self.folder);
            let temporary = temporary.map_err(file("create a folder in", &self.folder))?;
            make(temporary.path())?;
            fs::rename(temporary.path(), &place).map_err(file("create", &place))?;
        }
        Ok(place)
    }

    /// Keeps others off `name` until the guard is dropped.
    ///
    /// # Errors
    /// [`ImageError::File`] when the lock file cannot be used.
    pub(crate) fn lock(&self, name: &str) -> Result<File, ImageError> {
        let path = self.folder.join(format!("{name}.lock"));
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(file("open", &path))?;
        lock.lock().map_err(file("lock", &path))?;
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_is_made_once_and_another_apart() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let made = std::cell::Cell::new(0);
        let get = |inputs: &[&str]| {
            cache
                .get(inputs, |place| {
                    made.set(made.get() + 1);
                    fs::write(place.join("x"), inputs.concat()).map_err(file("write", place))
                })
                .unwrap()
        };
        assert_eq!(get(&["a", "bc"]), get(&["a", "bc"]));
        assert_eq!(made.get(), 1);
        assert_ne!(get(&["a", "bc"]), get(&["ab", "c"]));
        assert_eq!(made.get(), 2);
        assert_eq!(fs::read_to_string(get(&["ab", "c"]).join("x")).unwrap(), "abc");
    }

    #[test]
    fn what_failed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        assert!(cache.get(&["a"], |_| Err(ImageError::Recipe("no".into()))).is_err());
        assert!(cache.get(&["a"], |_| Ok(())).is_ok());
    }
}
