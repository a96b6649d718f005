// A growing array, without the C++ library.
#pragma once
#include <stdlib.h>
#include <string.h>

namespace emulated {

template <typename T>  // T is copied as bytes
class List {
public:
    List() = default;
    List(const List&) = delete;
    List& operator=(const List&) = delete;
    ~List() { free(items_); }

    int size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T& operator[](int i) { return items_[i]; }
    const T& operator[](int i) const { return items_[i]; }
    T& last() { return items_[size_ - 1]; }
    T* begin() { return items_; }
    T* end() { return items_ + size_; }
    const T* begin() const { return items_; }
    const T* end() const { return items_ + size_; }
    void clear() { size_ = 0; }
    void shrink(int size) { size_ = size; }
    T& add(const T& item) {
        if (size_ == capacity_) reserve(capacity_ ? 2 * capacity_ : 4);
        items_[size_] = item;
        return items_[size_++];
    }
    // Grows to `size` items; the new ones are zero bytes.
    void reach(int size) {
        if (size <= size_) return;
        if (size > capacity_) reserve(size < 2 * capacity_ ? 2 * capacity_ : size);
        memset(static_cast<void*>(items_ + size_), 0, sizeof(T) * static_cast<size_t>(size - size_));
        size_ = size;
    }
    void assign(const List& other) {
        reserve(other.size_);
        if (other.size_) memcpy(static_cast<void*>(items_), other.items_, sizeof(T) * static_cast<size_t>(other.size_));
        size_ = other.size_;
    }

private:
    void reserve(int capacity) {
        if (capacity <= capacity_) return;
        items_ = static_cast<T*>(realloc(static_cast<void*>(items_), sizeof(T) * static_cast<size_t>(capacity)));
        if (!items_) abort();
        capacity_ = capacity;
    }

    T* items_ = nullptr;
    int size_ = 0, capacity_ = 0;
};

}  // namespace emulated
