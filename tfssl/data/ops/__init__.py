"""Operations on images: one image or a batch, pure functions of pixels and draws."""
