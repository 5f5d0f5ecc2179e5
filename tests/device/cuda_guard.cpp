// What a build of torch for CPUs lacks to run autograd over fake CUDA tensors: hooks that report a GPU, a device guard
// whose streams and events do nothing, and DDP's timer. Load it before torch, which looks for the hooks only once.
// No method says `override` that some release of torch lacks: there it is a method that nobody calls.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

namespace {

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

struct Hooks : public at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const {}
  bool hasCUDA() const { return true; }
  bool isBuilt() const { return true; }
  bool isAvailable() const { return true; }
  bool hasPrimaryContext(DeviceIndex) const { return true; }
  DeviceIndex deviceCount() const { return 8; }
  DeviceIndex current_device() const { return 0; }
  DeviceIndex getCurrentDevice() const { return 0; }
};

DeviceIndex device_count = 0;

Stream only_stream() { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return {DeviceType::CUDA, 0}; }
  Device getDevice() const override { return {DeviceType::CUDA, 0}; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const { return only_stream(); }
  Stream getDefaultStream(Device) const { return only_stream(); }
  Stream getNewStream(Device, int = 0) const { return only_stream(); }
  Stream getStreamFromGlobalPool(Device, bool = false) const { return only_stream(); }
  Stream exchangeStream(Stream) const { return only_stream(); }
  DeviceIndex deviceCount() const noexcept override { return device_count; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

struct Clock : public c10d::Timer {
  explicit Clock(Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return 0; }
};

}  // namespace

namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, Clock);
}
namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks);
}
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// Autograd starts its threads, one for each device that it counts, in the first backward pass of a process. With a first
// pass before this call it starts none, and the process can be forked.
extern "C" void device_appears() { device_count = 8; }
