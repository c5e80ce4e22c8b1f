// A simulated accelerator: a PrivateUse1 backend whose memory is the host's and whose operators are the CPU's.
//
// To PyTorch it is an accelerator of its own kind. Its tensors cannot be mixed with the CPU's, convolutions arrive at
// convolution_overrideable as they do for an out-of-tree backend, and it has devices, streams, events, generators,
// autocast and a collective library ("simccl", which stages through gloo). Every operator without a kernel below runs
// on CPU tensors that share the memory of the device's tensors. Faults are added from Python (faults.py).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/extension.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_set>

namespace {

using at::Tensor;
constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// Devices and memory

thread_local c10::DeviceIndex current_device = 0;
thread_local std::map<c10::DeviceIndex, c10::StreamId> current_streams;

c10::DeviceIndex device_count() {
  const char* text = std::getenv("SIM_DEVICES");
  return static_cast<c10::DeviceIndex>(text ? std::atoi(text) : 1);
}

c10::DeviceIndex index_of(c10::Device device) {
  return device.has_index() ? device.index() : current_device;
}

void check_index(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "sim: invalid device ordinal ", int(index));
}

struct SimAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::malloc(bytes) : nullptr;
    return {memory, memory, &release, c10::Device(kType, current_device)};
  }
  static void release(void* memory) { std::free(memory); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
SimAllocator allocator;
REGISTER_ALLOCATOR(kType, &allocator);

// Called when somebody waits for the device: the faults that make something late end their delay then.
py::object* on_synchronize = nullptr;

void synchronize() {
  if (on_synchronize != nullptr) {
    py::gil_scoped_acquire gil;
    (*on_synchronize)();
  }
}

struct SimGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device before(kType, current_device);
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kType, current_device}; }
  void setDevice(c10::Device device) const override {
    check_index(index_of(device));
    current_device = index_of(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device = index_of(device); }
  c10::Stream getStream(c10::Device device) const override {
    auto index = index_of(device);
    auto found = current_streams.find(index);
    return c10::Stream(c10::Stream::UNSAFE, {kType, index}, found == current_streams.end() ? 0 : found->second);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, {kType, index_of(device)});
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    static std::atomic<c10::StreamId> streams{0};
    return c10::Stream(c10::Stream::UNSAFE, {kType, index_of(device)}, ++streams);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(stream.device());
    current_streams[stream.device_index()] = stream.id();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }
  // Work is complete when a call returns, so an event has always happened.
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = reinterpret_cast<void*>(1);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override { synchronize(); }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 0; }
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronize(); }
  void synchronizeStream(const c10::Stream&) const override { synchronize(); }
  bool queryStream(const c10::Stream&) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, SimGuard);

// Random numbers: those of a CPU generator that each device has for itself.

struct SimGenerator final : c10::GeneratorImpl {
  explicit SimGenerator(c10::DeviceIndex index)
      : GeneratorImpl({kType, index}, kKeys), host(at::make_generator<at::CPUGeneratorImpl>()) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  SimGenerator* clone_impl() const override {
    auto copy = new SimGenerator(device().index());
    copy->host = host.clone();
    return copy;
  }
  at::Generator host;
};

const at::Generator& default_generator(c10::DeviceIndex index) {
  static const std::vector<at::Generator> generators = [] {
    std::vector<at::Generator> made;
    for (c10::DeviceIndex k = 0; k < device_count(); ++k) {
      made.push_back(at::make_generator<SimGenerator>(k));
      made.back().set_current_seed(c10::default_rng_seed_val);
    }
    return made;
  }();
  index = index < 0 ? current_device : index;
  check_index(index);
  return generators[index];
}

// Page-locked memory of the host: ordinary memory that remembers what it is, for programs that ask.
struct PinnedAllocator final : c10::Allocator {
  static std::unordered_set<const void*>& blocks() {
    static std::unordered_set<const void*> known;
    return known;
  }
  static std::mutex& guard() {
    static std::mutex mutex;
    return mutex;
  }
  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> lock(guard());
      blocks().erase(memory);
    }
    std::free(memory);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = std::malloc(std::max<size_t>(bytes, 1));
    std::lock_guard<std::mutex> lock(guard());
    blocks().insert(memory);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

struct SimHooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    check_index(index);
    current_device = index;
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    auto before = current_device;
    setCurrentDevice(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current_device : exchangeDevice(index);
  }
  at::Device getDeviceFromPtr(void*) const override { return {kType, current_device}; }
  bool isPinnedPtr(const void* memory) const override {
    std::lock_guard<std::mutex> lock(PinnedAllocator::guard());
    return PinnedAllocator::blocks().count(memory) > 0;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<SimGenerator>(index < 0 ? current_device : index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto memory = allocator.allocate(bytes);
    if (storage.nbytes() > 0) std::memcpy(memory.get(), storage.data(), std::min(bytes, storage.nbytes()));
    auto* implementation = storage.unsafeGetStorageImpl();
    implementation->set_data_ptr(std::move(memory));
    implementation->set_nbytes(bytes);
  }
};
SimHooks hooks;

// The two views of one memory

void keep_storage_deleter(void* context) { delete static_cast<c10::Storage*>(context); }

// A storage for another device type on the memory of ``storage``, which it keeps alive.
c10::Storage share(const c10::Storage& storage, c10::Device device, c10::Allocator* owner) {
  void* memory = const_cast<void*>(storage.data());
  c10::DataPtr pointer(memory, new c10::Storage(storage), &keep_storage_deleter, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer), owner, true);
}

Tensor with_layout(c10::Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  auto* implementation = made.unsafeGetTensorImpl();
  implementation->set_storage_offset(like.storage_offset());
  implementation->set_sizes_and_strides(like.sizes(), like.strides());
  return made;
}

// The CPU tensor on the memory of a device's tensor.
Tensor host(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kType) return tensor;
  auto storage = share(tensor.storage(), c10::Device(c10::DeviceType::CPU), c10::GetAllocator(c10::DeviceType::CPU));
  return with_layout(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor);
}

// The device's tensor on the memory of a CPU tensor.
Tensor device(const Tensor& tensor, c10::DeviceIndex index) {
  if (!tensor.defined() || tensor.device().type() != c10::DeviceType::CPU) return tensor;
  return with_layout(share(tensor.storage(), c10::Device(kType, index), &allocator), kKeys, tensor);
}

// Factories, views and copies

Tensor empty(
    c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device> where, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  c10::Device place(kType, where ? index_of(*where) : current_device);
  check_index(place.index());
  c10::DeviceGuard guard(place);
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::ScalarType> dtype,
    std::optional<c10::Layout>, std::optional<c10::Device> where, std::optional<bool>) {
  c10::Device place(kType, where ? index_of(*where) : current_device);
  check_index(place.index());
  c10::DeviceGuard guard(place);
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, kKeys, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  host(to).copy_(host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor as_strided(
    const Tensor& tensor, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), tensor.key_set(), tensor.dtype());
  at::native::setStrided(
      view, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? offset->guard_int(__FILE__, __LINE__) : tensor.storage_offset());
  return view;
}

Tensor reshape_alias(const Tensor& tensor, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return as_strided(tensor, size, stride, std::nullopt);
}

Tensor view(const Tensor& tensor, c10::SymIntArrayRef size) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(size));
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef size, std::optional<c10::MemoryFormat> format) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto* implementation = tensor.unsafeGetTensorImpl();
  implementation->set_sizes_contiguous(sizes);
  if (format && *format != c10::MemoryFormat::Preserve) implementation->empty_tensor_restride(*format);
  size_t bytes = (tensor.storage_offset() + c10::multiply_integers(sizes)) * tensor.itemsize();
  if (tensor.storage().nbytes() < bytes) hooks.resizePrivateUse1Bytes(tensor.storage(), bytes);
  return tensor;
}

Tensor& set_storage(Tensor& tensor, at::Storage storage) {
  int64_t count = storage.nbytes() / tensor.itemsize();
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  at::native::setStrided(tensor, at::IntArrayRef({count}), at::IntArrayRef({int64_t(1)}), int64_t(0));
  return tensor;
}

Tensor& set_storage_view(
    Tensor& tensor, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  at::native::setStrided(
      tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.guard_int(__FILE__, __LINE__));
  return tensor;
}

at::Scalar local_scalar(const Tensor& tensor) {
  return host(tensor).item();
}

// Convolutions, which PyTorch hands to backends of other kinds under these names

// The CPU's convolutions of fp16 are very slow; those of an accelerator have a float32 accumulator.
Tensor widened(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ? tensor.to(at::kFloat) : tensor;
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups) {
  TORCH_CHECK(weight.device() == input.device(), "sim: convolution of tensors on different devices");
  at::AutoDispatchBelowAutograd guard;
  std::optional<Tensor> host_bias;
  if (bias && bias->defined()) host_bias = host(*bias);
  auto wide = [](const Tensor& tensor) { return widened(host(tensor)); };
  if (host_bias) host_bias = widened(*host_bias);
  auto output = at::convolution_symint(
      wide(input), wide(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups);
  return device(output.to(input.scalar_type()), input.device().index());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> mask) {
  at::AutoDispatchBelowAutograd guard;
  std::vector<c10::SymInt> bias_size{transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
  auto [a, b, c] = at::convolution_backward_symint(
      widened(host(grad)), widened(host(input)), widened(host(weight)), c10::SymIntArrayRef(bias_size), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  auto narrow = [&](const Tensor& tensor) {
    return tensor.defined() ? device(tensor.to(input.scalar_type()), input.device().index()) : tensor;
  };
  return {narrow(a), narrow(b), narrow(c)};
}

// Every other operator: the CPU's kernel on tensors that share the memory

// Operators that take an index on the host, as on other accelerators.
bool takes_host_tensors(const std::string& name) {
  return name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0 || name == "aten::set_";
}

struct Call {
  std::string name;
  std::vector<std::pair<Tensor, Tensor>> pairs;  // of a device's tensor and the CPU tensor on its memory
  std::optional<c10::Device> place;

  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != kType) {
      TORCH_CHECK(
          tensor.dim() == 0 || takes_host_tensors(name),
          "Expected all tensors to be on the same device, but found at least two devices, sim and ",
          tensor.device().str(), "! (", name, ")");
      return tensor;
    }
    TORCH_CHECK(
        !place || *place == tensor.device() || tensor.dim() == 0,
        "Expected all tensors to be on the same device, but found at least two devices, ", place->str(), " and ",
        tensor.device().str(), "! (", name, ")");
    if (!place) place = tensor.device();
    pairs.emplace_back(tensor, host(tensor));
    return pairs.back().second;
  }

  // An operator may have given an output another size.
  void follow_resizes() {
    for (auto& [own, shared] : pairs) {
      if (own.sizes() != shared.sizes() || own.storage().data() != shared.storage().data()) {
        resize(own, c10::fromIntArrayRefSlow(shared.sizes()), {});
        host(own).copy_(shared);
      }
    }
  }

  Tensor to_device(const Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != c10::DeviceType::CPU) return tensor;
    for (auto& [own, shared] : pairs) {
      if (tensor.unsafeGetTensorImpl() == shared.unsafeGetTensorImpl()) return own;
      if (tensor.storage().data() && tensor.storage().data() == shared.storage().data()) {
        auto alias = at::detail::make_tensor<c10::TensorImpl>(
            c10::TensorImpl::VIEW, c10::Storage(own.storage()), own.key_set(), tensor.dtype());
        at::native::setStrided(alias, tensor.sizes(), tensor.strides(), tensor.storage_offset());
        return alias;
      }
    }
    return device(tensor, place ? place->index() : current_device);
  }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto arguments = schema.arguments().size(), results = schema.returns().size();
  auto begin = stack->size() - arguments;
  Call call{schema.name(), {}, std::nullopt};
  // The device's own tensors come first: they decide about those of the host.
  for (size_t k = 0; k < arguments; ++k) {
    auto& value = (*stack)[begin + k];
    if (value.isTensor()) {
      value = call.to_host(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.to_host(tensor));
      value = c10::IValue(std::move(tensors));
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorList()) {
        tensors.push_back(tensor ? std::optional<Tensor>(call.to_host(*tensor)) : std::nullopt);
      }
      value = c10::IValue(std::move(tensors));
    } else if (value.isDevice()) {
      call.place = c10::Device(kType, index_of(value.toDevice()));
      value = c10::Device(c10::DeviceType::CPU);
    } else if (schema.arguments()[k].name() == "generator") {
      auto chosen = value.isNone() ? default_generator(call.place ? call.place->index() : -1) : value.toGenerator();
      value = static_cast<SimGenerator*>(chosen.unsafeGetGeneratorImpl())->host;
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.follow_resizes();
  begin = stack->size() - results;
  for (size_t k = 0; k < results; ++k) {
    auto& value = (*stack)[begin + k];
    if (value.isTensor()) {
      value = call.to_device(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.to_device(tensor));
      value = c10::IValue(std::move(tensors));
    }
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_view);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

// Mixed precision, unless the device is to have none

void register_autocast() {
  static torch::Library every(torch::Library::IMPL, "_", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  every.fallback(torch::CppFunction::makeFallthrough());
  static torch::Library m(torch::Library::IMPL, "aten", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
}

// Collective library: each call is gloo's on the shared memory and complete when it returns.

struct SimWork final : c10d::Work {
  explicit SimWork(c10d::OpType type, std::vector<Tensor> outputs = {}) : Work(-1, type), outputs_(std::move(outputs)) {
    future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future_->markCompleted(c10::IValue(outputs_));
    finish();
  }
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  std::vector<Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  std::vector<Tensor> outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

using Tensors = std::vector<Tensor>;

Tensors hosts(const Tensors& tensors) {
  Tensors made;
  for (const auto& tensor : tensors) made.push_back(host(tensor));
  return made;
}

std::vector<Tensors> hosts(const std::vector<Tensors>& lists) {
  std::vector<Tensors> made;
  for (const auto& list : lists) made.push_back(hosts(list));
  return made;
}

struct SimBackend final : c10d::Backend {
  SimBackend(c10::intrusive_ptr<c10d::Backend> gloo, bool drop_last)
      : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)), drop_last_(drop_last) {}
  const std::string getBackendName() const override { return "simccl"; }

  c10::intrusive_ptr<c10d::Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto shared = hosts(tensors);
    Tensors last;  // of the fault that leaves the last element of odd sizes alone
    for (const auto& tensor : shared) {
      last.push_back(drop_last_ && tensor.numel() % 2 ? tensor.flatten().slice(0, -1).clone() : Tensor());
    }
    gloo_->allreduce(shared, options)->wait();
    for (size_t k = 0; k < shared.size(); ++k) {
      if (last[k].defined()) shared[k].view(-1).slice(0, -1).copy_(last[k]);
    }
    return c10::make_intrusive<SimWork>(c10d::OpType::ALLREDUCE, tensors);
  }
  c10::intrusive_ptr<c10d::Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto shared = hosts(tensors);
    gloo_->broadcast(shared, options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::BROADCAST, tensors);
  }
  c10::intrusive_ptr<c10d::Work> reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto shared = hosts(tensors);
    gloo_->reduce(shared, options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::REDUCE, tensors);
  }
  c10::intrusive_ptr<c10d::Work> allgather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    auto shared_outputs = hosts(outputs);
    auto shared_inputs = hosts(inputs);
    gloo_->allgather(shared_outputs, shared_inputs, options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::ALLGATHER, outputs.empty() ? Tensors() : outputs[0]);
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(
      Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    auto shared_output = host(output), shared_input = host(input);
    gloo_->_allgather_base(shared_output, shared_input, options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::_ALLGATHER_BASE, Tensors{output});
  }
  c10::intrusive_ptr<c10d::Work> gather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    auto shared_outputs = hosts(outputs);
    auto shared_inputs = hosts(inputs);
    gloo_->gather(shared_outputs, shared_inputs, options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::GATHER, outputs.empty() ? Tensors() : outputs[0]);
  }
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    gloo_->barrier(options)->wait();
    return c10::make_intrusive<SimWork>(c10d::OpType::BARRIER);
  }
  c10::intrusive_ptr<c10d::Backend> gloo_;
  bool drop_last_;
};

c10::intrusive_ptr<c10d::Backend> make_backend(const c10::intrusive_ptr<c10d::Backend>& gloo, bool drop_last) {
  return c10::make_intrusive<SimBackend>(gloo, drop_last);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(&hooks); });
  m.def("register_autocast", &register_autocast);
  m.def("device_count", [] { return int(device_count()); });
  m.def("default_generator", [](int index) { return default_generator(index); });
  m.def("on_synchronize", [](const py::object& call) { on_synchronize = new py::object(call); });
  m.def("host", &host, "The CPU tensor on the memory of a device's tensor");
  m.def("device", [](const Tensor& tensor, int index) { return device(tensor, index); });
  m.def("make_backend", &make_backend, py::call_guard<py::gil_scoped_release>());
}
