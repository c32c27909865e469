#pragma once
// One lane's access to memory in any space, checked.

#include "machine.hpp"

namespace ptx {

using Access = SharedMemory::Access;

/// The space that lane's address lies in, with the address made relative to it.
Space resolve(Space named, u64& address);

/// Checks an access of `bytes` bytes at a resolved address and gives where they are. `used`: those
/// wanted of a widened load.
u8* locate(Warp&, Space resolved, u64 address, u32 bytes, u32 lane, Access how, u32 used = ~u32{0});

/// Counts the access of a warp, if counting is on.
void count(Warp&, Instruction const&, Space resolved, u64 const (&address)[warp_size], Mask lanes,
           u32 bytes);

/// Resolves the addresses of the lanes in `m` and gives where each one's bytes are.
void locate_all(Warp&, Instruction const&, Operand const& address, Mask m, u32 bytes, Access how,
                u8* (&to)[warp_size]);

}  // namespace ptx
