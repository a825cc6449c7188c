// SPDX-License-Identifier: GPL-2.0

//! `/dev/oom_reserve`: out-of-memory handlers in user space.
//!
//! An open file of this device is a session. With the `ATTACH` ioctl its process becomes the
//! handler of a memory cgroup: it reads what happens there, and answers with the `VERDICT` ioctl.
//! The session ends with the process, however that ends, because it ends with the file.
//!
//! The device only knows the protocol. What it means is up to the core in `mm/oom_hold.c`, which
//! never calls the device.
//!
//! Documentation: `Documentation/admin-guide/mm/oom_reserve.rst`
//!
//! C header: [`include/uapi/linux/oom_reserve.h`](srctree/include/uapi/linux/oom_reserve.h)

#![forbid(unsafe_code)]

use core::mem::size_of;
use kernel::{
    c_str,
    fs::{File, FileOwner},
    ioctl::{_IOC_SIZE, _IOR, _IOW},
    misc_file_operations,
    miscdevice::{MiscDevice, Registration},
    oom::Handler,
    poll::{Events, PollTable},
    prelude::*,
    sync::SetOnce,
    types::FromBytes,
    uaccess::{UserPtr, UserSlice, UserSliceWriter},
    uapi::{self, oom_reserve_attach, oom_reserve_event, oom_reserve_verdict},
};

module! {
    type: OomReserve,
    name: "oom_reserve",
    author: "Reprieve developers",
    description: "Out-of-memory handlers in user space",
    license: "GPL",
    imports_ns: ["OOM_HOLD"],
}

misc_file_operations! {
    static FOPS: Session;
}

struct OomReserve {
    _device: Pin<KBox<Registration>>,
}

impl kernel::Module for OomReserve {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Everybody may open the device. Whether one may attach, the cgroup's permissions say.
        let device = Registration::new(c_str!("oom_reserve"), 0o666, &FOPS);

        Ok(Self {
            _device: KBox::try_pin_init(device, GFP_KERNEL)?,
        })
    }
}

/// An open file.
///
/// The handler stays until the file is released, even if it was detached long before, because
/// pollers may be in its queue until then.
struct Session {
    handler: SetOnce<Handler>,
}

impl Session {
    fn handler(&self) -> Result<&Handler> {
        self.handler.get().ok_or(ENOTCONN)
    }

    fn attach(&self, file: &File, request: &oom_reserve_attach) -> Result {
        let handler = self
            .handler
            .try_set(|| Handler::attach(request, FileOwner::current()))?;

        // Another thread may have closed the descriptor while we were at it. If it was the last one
        // of this process, its `flush` came too early, and there will be no other. If a child has
        // inherited the file, the process would then stay the handler, with no means to decide.
        if !file.is_installed() {
            handler.detach();
            return Err(EBADF);
        }
        Ok(())
    }
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = KBox<Session>;

    fn open() -> Result<KBox<Session>> {
        let session = Session {
            handler: SetOnce::new(),
        };
        Ok(KBox::new(session, GFP_KERNEL_ACCOUNT)?)
    }

    fn read(session: &Session, file: &File, buffer: &mut UserSliceWriter) -> Result {
        // Before a record is taken, which would be lost.
        if buffer.len() < size_of::<oom_reserve_event>() {
            return Err(EINVAL);
        }
        let handler = session.handler()?;

        let first = if file.is_nonblocking() {
            handler.next_record()?.ok_or(EAGAIN)?
        } else {
            handler
                .queue()
                .wait_interruptible(|| handler.next_record().transpose())??
        };
        buffer.write(&first)?;

        // What goes wrong from here on must not hide the first. That the session has ended
        // meanwhile is for the next call to tell.
        while buffer.len() >= size_of::<oom_reserve_event>() {
            let Ok(Some(record)) = handler.next_record() else {
                break;
            };
            if buffer.write(&record).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn poll<'file>(
        session: &'file Session,
        _file: &'file File,
        mut table: PollTable<'file>,
    ) -> Events {
        let Some(handler) = session.handler.get() else {
            // There is no queue yet: better an error now than a wait without end.
            return Events::ERR;
        };
        table.register(handler.queue());
        handler.poll()
    }

    fn ioctl(session: &Session, file: &File, command: u32, argument: UserPtr) -> Result<isize> {
        let user = UserSlice::new(argument, _IOC_SIZE(command));

        match any_size(command) {
            ATTACH => session.attach(file, &parse(user)?)?,
            VERDICT => session.handler()?.verdict(&parse(user)?)?,
            STATE => {
                if _IOC_SIZE(command) < size_of::<oom_reserve_event>() {
                    return Err(EINVAL);
                }
                let state = session.handler()?.state()?;
                user.writer().write(&state)?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn flush(session: &Session, _file: &File, owner: FileOwner) -> Result {
        // Children that have inherited the file close it, too: that is nothing to the session.
        match session.handler.get() {
            Some(handler) if handler.is_owned_by(owner) => handler.detach(),
            _ => {}
        }
        Ok(())
    }
}

const ATTACH: u32 = any_size(_IOW::<oom_reserve_attach>(uapi::OOM_RESERVE_IOC_MAGIC, 1));
const VERDICT: u32 = any_size(_IOW::<oom_reserve_verdict>(uapi::OOM_RESERVE_IOC_MAGIC, 2));
const STATE: u32 = any_size(_IOR::<oom_reserve_event>(uapi::OOM_RESERVE_IOC_MAGIC, 3));

/// Returns `command` without the size of its argument, in which versions of the ABI may differ.
const fn any_size(command: u32) -> u32 {
    command & !(uapi::_IOC_SIZEMASK << uapi::_IOC_SIZESHIFT)
}

/// The argument of a command, which begins with its size.
trait Argument: FromBytes {
    fn size(&mut self) -> &mut u32;
}

impl Argument for oom_reserve_attach {
    fn size(&mut self) -> &mut u32 {
        &mut self.size
    }
}

impl Argument for oom_reserve_verdict {
    fn size(&mut self) -> &mut u32 {
        &mut self.size
    }
}

/// Reads the argument of a command, whose size is given twice: in the command and in itself.
///
/// Of a larger one, from a newer program, only what we know is left; the rest must be zero.
fn parse<T: Argument>(user: UserSlice) -> Result<T> {
    let mut reader = user.reader();
    let length = reader.len();
    let mut argument: T = reader.read_extensible()?;

    if *argument.size() as usize != length {
        return Err(EINVAL);
    }
    *argument.size() = size_of::<T>() as u32;
    Ok(argument)
}
