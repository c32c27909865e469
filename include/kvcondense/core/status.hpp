#pragma once

namespace kvcondense {

/// How a step ended. Nothing in the library throws, prints or aborts; on any value but `ok` the
/// object is as it was before the call, unless the call's card says otherwise.
enum class [[nodiscard]] Status : unsigned char {
  ok,
  shape_mismatch,       ///< a view disagrees with the cache or with another view
  invalid_argument,     ///< a value outside its documented range
  out_of_range,         ///< a layer, head, slot, token or position that does not exist
  out_of_memory,        ///< the memory resource said no
  workspace_too_small,  ///< the context's workspace is smaller than `workspace_bytes` asked for
  missing_input,        ///< the recipe needs something the caller did not give
  not_supported,        ///< a legal request that this recipe or backend cannot serve
  incompatible,         ///< stages that may not be combined, or a file of another recipe
  corrupt_data,         ///< bytes that are not what they claim to be
  io_error,             ///< a reader or writer of the caller failed
  order_violation,      ///< calls in an order that the card forbids
  no_device,            ///< the backend's device or driver is not there, or cannot run this build
  device_error,         ///< the device failed in this call or an earlier one; its memory cannot be trusted
};

/// The value's own name, for messages.
constexpr const char* to_string(Status s) {
  switch (s) {
    case Status::ok: return "ok";
    case Status::shape_mismatch: return "shape_mismatch";
    case Status::invalid_argument: return "invalid_argument";
    case Status::out_of_range: return "out_of_range";
    case Status::out_of_memory: return "out_of_memory";
    case Status::workspace_too_small: return "workspace_too_small";
    case Status::missing_input: return "missing_input";
    case Status::not_supported: return "not_supported";
    case Status::incompatible: return "incompatible";
    case Status::corrupt_data: return "corrupt_data";
    case Status::io_error: return "io_error";
    case Status::order_violation: return "order_violation";
    case Status::no_device: return "no_device";
    case Status::device_error: return "device_error";
  }
  return "unknown";
}

}  // namespace kvcondense
