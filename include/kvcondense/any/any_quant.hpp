#pragma once

#include <kvcondense/any/any_codec.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>

namespace kvcondense::any {

namespace detail {

using QuantRoom = InlineValue<128>;

struct QuantTable {
  AnyCodec (*key_codec)(const QuantRoom&);
  AnyCodec (*value_codec)(const QuantRoom&);
  Flush (*key_flush)(const QuantRoom&);
  Flush (*value_flush)(const QuantRoom&);
  Status (*validate)(const QuantRoom&, const CacheShape&);
  const char* (*word)(const QuantRoom&);
};

template <class Q>
struct QuantCalls {
  static AnyCodec key_codec(const QuantRoom& q) { return AnyCodec(q.as<Q>().key_codec()); }
  static AnyCodec value_codec(const QuantRoom& q) { return AnyCodec(q.as<Q>().value_codec()); }
  static Flush key_flush(const QuantRoom& q) { return q.as<Q>().key_flush(); }
  static Flush value_flush(const QuantRoom& q) { return q.as<Q>().value_flush(); }
  static Status validate(const QuantRoom& q, const CacheShape& shape) {
    return q.as<Q>().validate(shape);
  }
  static const char* word(const QuantRoom& q) { return word_of(q.as<Q>()); }

  static constexpr QuantTable table{key_codec, value_codec, key_flush, value_flush, validate, word};
};

}  // namespace detail

/// Any quant stage as a value: trivially copyable, at most 128 bytes of knobs.
class AnyQuant {
 public:
  static constexpr Descriptor about{"any", Stage::quant, "chosen at run time"};

  AnyQuant();  ///< KeepExact
  template <class Q>
  requires(Described<Q> && !std::same_as<Q, AnyQuant>) explicit AnyQuant(const Q& stage)
      : sinks(stage.sinks), room_(stage), table_(&detail::QuantCalls<Q>::table) {}

  AnyCodec key_codec() const { return table_->key_codec(room_); }
  AnyCodec value_codec() const { return table_->value_codec(room_); }
  Flush key_flush() const { return table_->key_flush(room_); }
  Flush value_flush() const { return table_->value_flush(room_); }
  Status validate(const CacheShape& shape) const { return table_->validate(room_, shape); }
  const char* word() const { return table_->word(room_); }

  index_t sinks = 0;  ///< copied from the stage

 private:
  detail::QuantRoom room_;
  const detail::QuantTable* table_;
};

}  // namespace kvcondense::any
